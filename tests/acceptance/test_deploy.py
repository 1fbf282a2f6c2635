"""The files of deploy/: webserver, daemon and code location as three processes, on a database of one's own."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from omniops_pipelines.instance import EVENT_BATCH_VARIABLE, dagster_database_url
from resources.settings import PROJECT_ROOT
from tests.acceptance.program import Program, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.acceptance

DEPLOY = PROJECT_ROOT / "deploy"
UNITS = ("code", "daemon", "webserver")
SELECTOR = {"repositoryLocationName": "omniops", "repositoryName": "__repository__"}
LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}
"""


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string((DEPLOY / "systemd" / f"omniops-{name}.service").read_text())
    return parsed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def environment(database: Database, home: Path) -> dict[str, str]:
    """The variables that deploy/omniops.env.example names, for this test's database."""
    dagster_home = home.parent / "dagster-home"
    dagster_home.mkdir()
    (dagster_home / "dagster.yaml").write_text((DEPLOY / "dagster.yaml").read_text())
    storage = home.parent / "storage"
    storage.mkdir()
    return {
        **database.environment(home),
        "DAGSTER_HOME": str(dagster_home),
        "OMNIOPS_DAGSTER_DATABASE_URL": dagster_database_url(database.url),
        "OMNIOPS_DAGSTER_STORAGE": str(storage),
        EVENT_BATCH_VARIABLE: "1000",
    }


@pytest.fixture
def deployment(environment: dict[str, str], tmp_path: Path) -> Iterator[int]:
    """The three processes, by the units' own command lines; gives the UI's port."""
    code, web = free_port(), free_port()
    workspace = yaml.safe_load((DEPLOY / "workspace.yaml").read_text())
    workspace["load_from"][0]["grpc_server"]["port"] = code
    (tmp_path / "workspace.yaml").write_text(yaml.safe_dump(workspace))
    # Once, before the processes that would race for it.
    Program(environment).run("migrate").expect(0)
    subprocess.run(
        [sys.executable, "-m", "dagster", "instance", "migrate"], env=environment, check=True, capture_output=True
    )
    processes = []
    logs = [(tmp_path / f"{name}.log").open("w") for name in UNITS]
    for name, log in zip(UNITS, logs, strict=True):
        line = unit(name)["Service"]["ExecStart"]
        line = line.replace("/opt/omniops/.venv/bin", str(Path(sys.executable).parent))
        line = line.replace("/opt/omniops/deploy/workspace.yaml", str(tmp_path / "workspace.yaml"))
        line = line.replace("-p 4266", f"-p {code}").replace("-p 3000", f"-p {web}")
        processes.append(
            subprocess.Popen(
                shlex.split(line), cwd=PROJECT_ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        )
    try:
        yield web
    finally:
        for process in reversed(processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 2)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait(30)
        for log in logs:
            log.close()


def query(port: int, text: str, **variables: Any) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": text, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["data"]


def loaded(port: int) -> bool:
    with suppress(OSError, TypeError):
        found = query(
            port,
            "{ workspaceOrError { ... on Workspace { "
            "locationEntries { name locationOrLoadError { __typename } } } } }",
        )
        location = {"name": "omniops", "locationOrLoadError": {"__typename": "RepositoryLocation"}}
        return bool(found["workspaceOrError"]["locationEntries"] == [location])
    return False


def _one_run_for_each_website(port: int, database: Database, site: Site) -> None:
    """Two runs with the tag of one website: the second waits until the first has ended."""
    site.chain(12)
    site.latency = 0.3
    runs = []
    for job_id in ("one", "two"):
        params = {
            "selector": {**SELECTOR, "pipelineName": "crawl"},
            "runConfigData": {
                "ops": {"plan_crawl": {"config": {"urls": [site.url], "allow_private": True, "job_id": job_id}}}
            },
            "mode": "default",
            "executionMetadata": {"tags": [{"key": "omniops/domain", "value": f"127.0.0.1:{site.port}"}]},
        }
        runs.append(query(port, LAUNCH, params=params)["launchRun"]["run"]["runId"])
    seen = set()
    wait_until(lambda: seen.add(_statuses(database, runs)) or _statuses(database, runs) == ("SUCCESS", "SUCCESS"))
    assert ("STARTED", "QUEUED") in seen
    assert not {pair for pair in seen if pair[1] != "QUEUED" and pair[0] != "SUCCESS"}, seen


def _statuses(database: Database, runs: list[str]) -> tuple[str, ...]:
    """Of the runs, in their order."""
    return tuple(str(database.value("SELECT status FROM dagster.runs WHERE run_id = :r", r=run)) for run in runs)


def test_the_three_processes_run_jobs_one_for_each_website_and_the_schedules_are_on(
    deployment: int, database: Database, environment: dict[str, str], site: Site, tmp_path: Path
) -> None:
    try:
        wait_until(lambda: loaded(deployment), why="the code location")
    except AssertionError:
        raise AssertionError([(tmp_path / f"{name}.log").read_text()[-2_000:] for name in UNITS]) from None
    params = {
        "selector": {**SELECTOR, "pipelineName": "cleanup_message_queue"},
        "runConfigData": {"ops": {"remove_expired_messages": {"config": {"dry_run": False}}}},
        "mode": "default",
    }
    started = query(deployment, LAUNCH, params=params)["launchRun"]
    assert started["__typename"] == "LaunchRunSuccess", started
    run_id = started["run"]["runId"]
    wait_until(
        lambda: (
            database.value("SELECT status FROM dagster.runs WHERE run_id = :r", r=run_id) in ("SUCCESS", "FAILURE")
        ),
        why="the run",
    )
    assert database.rows("SELECT run_id, status, dry_run FROM retention_runs") == [
        {"run_id": run_id, "status": "completed", "dry_run": False}
    ]
    # Its files are where the environment says, and nothing was written into DAGSTER_HOME.
    assert (Path(environment["OMNIOPS_DAGSTER_STORAGE"]) / "storage" / run_id).is_dir()
    _one_run_for_each_website(deployment, database, site)
    found = query(
        deployment,
        """query ($s: RepositorySelector!) { schedulesOrError(repositorySelector: $s) {
             ... on Schedules { results { name executionTimezone scheduleState { status } } } } }""",
        s=SELECTOR,
    )["schedulesOrError"]["results"]
    names = {schedule["name"] for schedule in found if schedule["scheduleState"]["status"] == "RUNNING"}
    assert names >= {
        "message_queue_cleanup_daily", "scrape_jobs_cleanup_weekly", "conversations_retention_weekly",
        "analytics_retention_weekly", "retention_audit_monthly", "refresh_hourly", "purge_runs_weekly",
    }  # fmt: skip
    assert {schedule["executionTimezone"] for schedule in found} == {"UTC"}


@pytest.mark.parametrize("path", ["omniops_pipelines/dagster.yaml", "deploy/dagster.yaml"])
def test_the_instance_is_accepted_without_a_warning_and_has_its_limits(
    path: str, environment: dict[str, str]
) -> None:
    text = (PROJECT_ROOT / path).read_text()
    (Path(environment["DAGSTER_HOME"]) / "dagster.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c",
         "import dagster as dg\n"
         "with dg.DagsterInstance.get() as instance:\n"
         "    queue = instance.get_concurrency_config().run_queue_config\n"
         "    print(instance.run_coordinator.dequeue_interval_seconds)\n"
         "    print([dict(limit) for limit in queue.tag_concurrency_limits])\n"
         "    print(instance.run_monitoring_enabled, instance.run_retries_enabled, instance.telemetry_enabled)\n"
         "    print(instance.get_concurrency_config().pool_config.default_pool_limit)\n"],
        cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "1",
        "[{'key': 'omniops/domain', 'value': {'applyLimitPerUniqueValue': True}, 'limit': 1}]",
        "True True False",
        "1",
    ]


def test_every_variable_that_the_files_need_is_in_the_example() -> None:
    example = (DEPLOY / "omniops.env.example").read_text()
    named = set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
    wanted = set(re.findall(r"env: ([A-Z_]+)", (DEPLOY / "dagster.yaml").read_text()))
    assert wanted <= named
    assert {unit(name)["Service"]["EnvironmentFile"] for name in UNITS} == {"/etc/omniops/omniops.env"}
    readme = (DEPLOY / "README.md").read_text()
    assert {name for name in named if name not in readme} == set()
