"""The reports as Dagster makes them: with the real resource, on a real database."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from assets.checks import CHECKS
from assets.health import HEALTH_ASSETS
from assets.retention import RETENTION_ASSETS
from omniops_pipelines.definitions import build_defs
from tests.support.rows import make_customer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from resources.postgres.resource import PostgresResource
    from tests.support.databases import Database

_NAMES = {asset.key.to_user_string() for asset in (*RETENTION_ASSETS, *HEALTH_ASSETS)}


class _References(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def test_the_job_makes_every_report_and_runs_every_check(
    home: Path, database: Database, instance: dg.DagsterInstance
) -> None:
    with database.engine.begin() as connection:
        make_customer(connection)
    defs = build_defs()
    job = defs.resolve_job_def("reports")
    result = job.execute_in_process(instance=instance)
    assert result.success
    made = {
        event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key
    }
    assert made == {*_NAMES, "crawl_performance_report"}
    evaluations = result.get_asset_check_evaluations()
    expected = {key for checks in CHECKS for key in checks.check_keys}
    assert {evaluation.asset_check_key for evaluation in evaluations} >= expected
    # A valid row of each kind, and no retention run yet: nothing is wrong with the rows.
    assert [e.asset_check_key for e in evaluations if not e.passed] == []
    for name in _NAMES:
        page = _References((home / "reports" / f"{name}.html").read_text())
        assert page.found == []
        assert "script" not in page.tags


def test_a_materialisation_shows_figures_tables_and_the_file(
    home: Path, database: Database, postgres: PostgresResource, instance: dg.DagsterInstance
) -> None:
    with database.engine.begin() as connection:
        make_customer(connection)
    result = dg.materialize(list(HEALTH_ASSETS), instance=instance, resources={"postgres": postgres})
    assert result.success
    (snapshot,) = result.asset_materializations_for_node("storage_snapshots")
    metadata = snapshot.metadata
    assert metadata["dagster/row_count"].value == database.value("SELECT count(*) FROM storage_snapshots")
    assert metadata["file"].value == str(home / "reports" / "storage_snapshots.html")
    assert "data:image/svg+xml;base64," in str(metadata["Growth: plot"].value)
    # What others write is observed, so that its rows are seen at its own asset.
    observed = {event.asset_key.to_user_string() for event in result.get_asset_observation_events()}
    assert {"customers", "messages", "orders"} <= observed
    assert not observed & {"storage_snapshots", "daily_job_stats", "scraped_pages", "scrape_jobs"}
    (queue,) = result.asset_materializations_for_node("queue_health")
    assert queue.metadata["pending"].value == 1


def test_a_report_over_a_database_without_tables_says_what_to_do(
    home: Path, postgres: PostgresResource, empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIOPS_DATABASE_URL", empty_database.url)
    with pytest.raises(dg.Failure, match="omniops migrate"):
        dg.materialize(list(RETENTION_ASSETS), resources={"postgres": postgres})
    assert not (home / "reports").exists()


def test_a_report_that_fails_says_why_and_holds_up_no_other(
    home: Path, plant: Callable[..., None], instance: dg.DagsterInstance
) -> None:
    plant("REVOKE SELECT ON gdpr_audit_log FROM service_role")
    result = build_defs().resolve_job_def("reports").execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    made = {
        event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key
    }
    assert {*_NAMES, "crawl_performance_report"} - made == {"retention_report"}
    (failure,) = (e for e in result.get_step_failure_events() if e.step_key == "retention_report")
    error = failure.event_specific_data.user_failure_data
    assert "permission denied for table gdpr_audit_log" in error.description


def test_a_data_folder_that_cannot_be_written_is_named(home: Path, postgres: PostgresResource) -> None:
    (home / "reports").write_text("a file where the folder should be")
    with pytest.raises(dg.Failure, match="OMNIOPS_HOME must be writable"):
        dg.materialize([RETENTION_ASSETS[0]], resources={"postgres": postgres})
