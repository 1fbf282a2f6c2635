"""What is imported when: loading is quick where nothing is loaded that is not needed."""

from __future__ import annotations

import subprocess
import sys

from resources.settings import PROJECT_ROOT


def modules_after(statement: str) -> set[str]:
    """The modules of a fresh process that has run a statement; a warning ends it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{statement}\nimport sys\nprint(*sys.modules)"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_a_crawl_at_the_command_line_loads_no_pandas_and_no_reports() -> None:
    loaded = modules_after(
        "import omniops_pipelines.cli\n"
        "from omniops_pipelines.jobs.crawl import crawl_alone\n"
        "assert crawl_alone().name == 'crawl'"
    )
    assert "dagster" in loaded
    assert not {"pandas", "numpy", "assets.html", "assets.plots", "omniops_pipelines.definitions"} & loaded


def test_the_help_loads_neither_dagster_nor_the_database() -> None:
    loaded = modules_after("import omniops_pipelines.cli")
    assert not {"dagster", "crawlee", "sqlalchemy", "pandas"} & loaded


def test_the_code_location_loads_without_a_warning_and_without_what_only_some_runs_need() -> None:
    loaded = modules_after("import omniops_pipelines.definitions")
    assert "omniops_pipelines.jobs.retention" in loaded
    # Every run, tick and step of several workers is a process that loads all of it.
    assert not {"pandas", "numpy", "crawlee", "playwright", "trafilatura", "onnxruntime"} & loaded


def test_the_collector_still_collects() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import omniops_pipelines, gc; print(gc.isenabled(), gc.get_threshold()[0])"],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    enabled, threshold = done.stdout.split()
    assert enabled == "True"
    assert 0 < int(threshold) <= 100_000
