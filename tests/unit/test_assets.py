"""The asset graph, derived from the data catalogue."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from assets.audit import AUDIT_TABLES
from assets.checks import CHECKS
from assets.code_links import code_link
from assets.content import CONTENT_TABLES
from assets.specs import MATERIALISED, POSTGRES_STATISTICS, WEBSITE, asset_specs
from omniops_pipelines.definitions import build_defs
from resources.postgres.catalogue import TABLES
from resources.postgres.models import metadata
from resources.postgres.retention import REMOVABLE
from resources.settings import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Mapping

_REPORTS = {
    "retention": {"retention_report", "retention_forecast"},
    "health": {"orphaned_rows", "slow_queries", "queue_health"},
    "statistics": {"crawl_performance_report"},
}
_REPORT_NAMES = set().union(*_REPORTS.values())


@pytest.fixture(scope="module")
def specs() -> Mapping[str, dg.AssetSpec]:
    """Every asset that Dagster loads, by name."""
    return {spec.key.to_user_string(): spec for spec in build_defs().resolve_all_asset_specs()}


@pytest.fixture(scope="module")
def parents(specs: Mapping[str, dg.AssetSpec]) -> Mapping[str, set[str]]:
    return {name: {dep.asset_key.to_user_string() for dep in spec.deps} for name, spec in specs.items()}


def test_every_table_of_the_catalogue_is_an_asset_once_and_so_are_the_reports(
    specs: Mapping[str, dg.AssetSpec],
) -> None:
    assert set(specs) == {*TABLES, WEBSITE, POSTGRES_STATISTICS, *_REPORT_NAMES}
    external = [spec.key.to_user_string() for spec in asset_specs()]
    assert len(external) == len(set(external))
    # A table that an asset computes is not also listed as external: Dagster would refuse to load both.
    graph = build_defs().resolve_asset_graph()
    computed = {key.to_user_string() for key in graph.materializable_asset_keys}
    assert computed == MATERIALISED | _REPORT_NAMES
    assert set(external) == set(specs) - computed


def test_assets_stand_in_the_groups_that_the_specification_names(specs: Mapping[str, dg.AssetSpec]) -> None:
    groups: dict[str, set[str]] = {}
    for name, spec in specs.items():
        groups.setdefault(spec.group_name or "", set()).add(name)
    assert groups["content"] == {"scraped_pages", "website_content", "page_embeddings"}
    assert groups["audit"] == {"scrape_jobs", "scrape_job_results", "scrape_job_stats"}
    assert groups["statistics"] == {"daily_job_stats", "daily_domain_stats", "crawl_performance_report"}
    assert groups["retention"] == _REPORTS["retention"]
    assert groups["health"] == {"storage_snapshots", *_REPORTS["health"]}
    assert {table.name for table in AUDIT_TABLES} == groups["audit"]
    assert {table.name for table in CONTENT_TABLES} <= groups["content"]


def test_every_asset_is_described_owned_and_leads_to_its_code(specs: Mapping[str, dg.AssetSpec]) -> None:
    for name, spec in specs.items():
        assert spec.description, name
        assert spec.owners, name
        assert spec.kinds, name
        assert spec.group_name, name
        if name in (WEBSITE, POSTGRES_STATISTICS):
            continue
        assert "omniops/tier" in spec.tags, name
        (reference,) = spec.metadata["dagster/code_references"].code_references
        assert isinstance(reference, dg.LocalFileCodeReference)
        assert Path(reference.file_path).is_file(), name
        assert not reference.label.startswith("/"), "what is shown does not tell where the project lies"


def test_every_table_has_its_name_its_columns_and_its_retention(specs: Mapping[str, dg.AssetSpec]) -> None:
    for name in TABLES:
        columns = specs[name].metadata["dagster/column_schema"].columns
        assert [column.name for column in columns] == list(metadata.tables[name].columns.keys())
        assert specs[name].metadata["dagster/table_name"] == f"public.{name}"
        assert specs[name].metadata["kept"] == TABLES[name].retention.keeps
        # What a new column holds is said by its model's comment, or by assets/columns.py.
        assert [column.name for column in columns if not column.description] == [], name


def test_a_link_leads_to_the_line_where_the_table_is_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMNIOPS_SOURCE_URL", raising=False)
    (reference,) = code_link(metadata.tables["message_queue"])["dagster/code_references"].code_references
    assert isinstance(reference, dg.LocalFileCodeReference)
    lines = Path(reference.file_path).read_text().splitlines()
    assert reference.line_number is not None
    assert lines[reference.line_number - 1] == "message_queue = Table("
    assert reference.label == f"resources/postgres/models.py:{reference.line_number}"


def test_a_link_to_published_source_tells_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIOPS_SOURCE_URL", "https://git.example/omniops/blob/main/")
    (reference,) = code_link(code_link)["dagster/code_references"].code_references
    assert isinstance(reference, dg.UrlCodeReference)
    assert reference.url.startswith("https://git.example/omniops/blob/main/assets/code_links.py#L")
    assert str(Path.cwd()) not in str(reference)
    monkeypatch.setenv("OMNIOPS_SOURCE_URL", "javascript:alert(1)")
    with pytest.raises(InvalidSetting, match=r"must begin with https://"):
        code_link(code_link)


def test_what_is_kept_fresh_says_so(specs: Mapping[str, dg.AssetSpec]) -> None:
    fresh = {name for name, spec in specs.items() if spec.freshness_policy is not None}
    assert fresh == MATERIALISED | _REPORT_NAMES
    weekly = specs["retention_report"].freshness_policy
    assert isinstance(weekly, dg.FreshnessPolicy)
    assert weekly == dg.FreshnessPolicy.time_window(fail_window=timedelta(days=9), warn_window=timedelta(days=8))


def test_every_check_says_what_it_means_and_what_to_do() -> None:
    for checks in CHECKS:
        for spec in checks.check_specs:
            assert "A failure means" in (spec.description or "") or "so a failure means" in (spec.description or "")
            assert "To do: " in (spec.description or ""), spec.name


def test_only_the_checks_of_what_statistics_are_made_from_block() -> None:
    blocking = {
        (spec.asset_key.to_user_string(), spec.name)
        for checks in CHECKS
        for spec in checks.check_specs
        if spec.blocking
    }
    assert blocking == {
        ("scrape_job_results", "results_have_a_job"), ("scrape_job_results", "same_customer_as_parent"),
    }  # fmt: skip


def test_the_job_reports_has_all_reports_and_all_checks() -> None:
    job = build_defs().resolve_job_def("reports")
    assert {key.to_user_string() for key in job.asset_layer.selected_asset_keys} == {
        *_REPORT_NAMES, "storage_snapshots",
    }  # fmt: skip
    wanted = {key for checks in CHECKS for key in checks.check_keys}
    assert wanted <= set(job.asset_layer.asset_graph.asset_check_keys)


# --- lineage -----------------------------------------------------------------------------------------------------


def _ancestors(parents: Mapping[str, set[str]], name: str, path: tuple[str, ...] = ()) -> set[str]:
    assert name not in path, f"a cycle through {name}"
    return parents[name].union(*(_ancestors(parents, parent, (*path, name)) for parent in parents[name]))


def test_the_graph_has_no_cycle_and_every_report_comes_from_the_website(parents: Mapping[str, set[str]]) -> None:
    for name in parents:
        _ancestors(parents, name)
    for name in (*_REPORT_NAMES, *MATERIALISED, "alert_history", "retention_runs", "website_content"):
        assert WEBSITE in _ancestors(parents, name), name


def test_the_graph_is_one_piece(parents: Mapping[str, set[str]]) -> None:
    neighbours: dict[str, set[str]] = {name: set() for name in parents}
    for name, above in parents.items():
        for parent in above:
            neighbours[name].add(parent)
            neighbours[parent].add(name)
    seen, todo = set[str](), [WEBSITE]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += neighbours[name]
    assert set(neighbours) - seen == set()


def test_the_graph_can_be_read(parents: Mapping[str, set[str]]) -> None:
    """Few arrows: none that another way already says, but for those into what has several sources of its own."""
    arrows = sum(len(above) for above in parents.values())
    assert arrows <= 65
    assert max(len(above) for above in parents.values()) <= 5


def test_a_retention_report_reads_what_proves_it(parents: Mapping[str, set[str]]) -> None:
    assert parents["retention_report"] == {"retention_runs", "legal_holds", "gdpr_audit_log"}
    assert parents["retention_runs"] >= {
        "message_queue", "scrape_jobs", "conversations", "daily_job_stats",
    }  # fmt: skip
    assert len(REMOVABLE) == len(parents["retention_runs"])
