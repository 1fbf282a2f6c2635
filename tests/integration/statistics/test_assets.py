"""The assets of the group `statistics` in Dagster: partitions, refusals, checks, report."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import dagster as dg
import psycopg
import pytest
from sqlalchemy import text

from assets.performance import PERFORMANCE_ASSETS
from assets.specs import asset_specs
from assets.statistics import STATISTICS_ASSETS, STATISTICS_CHECKS, TABLES
from omniops_pipelines.definitions import defs
from resources.postgres.resource import PostgresResource
from resources.postgres.statistics import yesterday
from tests.integration.statistics.world import DAY, Page, expected, fill, on, rounded, stored

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
FIRST_TAG, LAST_TAG = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
SOON = timedelta(days=2)


def yesterdays() -> int:
    """Days from DAY to yesterday."""
    return (yesterday(datetime.now(UTC)) - DAY).days


def run(
    instance: dg.DagsterInstance, job: dg.JobDefinition | None = None, config: dict[str, Any] | None = None,
    **how: Any,
) -> dg.ExecuteInProcessResult:  # fmt: skip
    return (job or defs.resolve_job_def("statistics")).execute_in_process(
        instance=instance, raise_on_error=False, run_config={**QUIET, **(config or {})}, **how
    )


def over(instance: dg.DagsterInstance, first: int, last: int) -> dg.ExecuteInProcessResult:
    days = {FIRST_TAG: (DAY + timedelta(days=first)).isoformat(), LAST_TAG: (DAY + timedelta(days=last)).isoformat()}
    return run(instance, tags=days)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    (event,) = (event for event in result.all_events if event.is_step_failure)
    data = event.step_failure_data.user_failure_data
    assert data is not None, event.step_failure_data.error
    return data.description or ""


def materialized(result: dg.ExecuteInProcessResult, name: str) -> list[dg.AssetMaterialization]:
    return [e.materialization for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey(name)]


def checked(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
    return {(e.asset_key.to_user_string(), e.check_name): e for e in result.get_asset_check_evaluations()}


def test_a_backfill_is_one_run_with_a_materialisation_of_each_day_and_asset(
    database: Database, instance: dg.DagsterInstance
) -> None:
    jobs = [on(d, Page(0, ms=d), Page(1, "failed", error="timeout"), customer=f"c{d % 3}") for d in range(0, 90, 3)]
    fill(database, jobs)
    result = over(instance, 0, 89)
    assert result.success
    assert instance.get_runs_count() == 1
    assert rounded(stored(database)) == rounded(expected(jobs))
    for name in TABLES:
        events = materialized(result, name)
        assert [event.partition for event in events] == [
            (DAY + timedelta(days=d)).isoformat() for d in range(90)
        ]  # fmt: skip
        rows = [event.metadata["dagster/partition_row_count"].value for event in events]
        assert rows == [int(d % 3 == 0) for d in range(90)]
        assert [event.metadata["pages"].value for event in events[:-1]] == [2 * (d % 3 == 0) for d in range(89)]
        # Hundreds of events: each but the last has numbers alone, the last one tables and pictures.
        assert {frozenset(event.metadata) for event in events[:-1]} == {
            frozenset({"dagster/partition_row_count", "pages"})
        }
        assert events[-1].metadata["dagster/row_count"].value == 30
        assert "data:image/svg+xml" in str(events[-1].metadata["latency"].value)
        assert instance.get_materialized_partitions(dg.AssetKey(name)) == {event.partition for event in events}
    assert {key[1]: evaluation.passed for key, evaluation in checked(result).items()} == {
        "matches_its_rows": True, "adds_up_to_customers": True, "newest_day_is_there": True,
        "results_have_a_job": True, "same_customer_as_parent": True,
    }  # fmt: skip


def test_a_day_that_cannot_be_counted_again_fails_its_run_and_is_left_alone(
    database: Database, instance: dg.DagsterInstance
) -> None:
    fill(database, [on(d, Page(0), Page(1)) for d in range(3)])
    assert over(instance, 0, 2).success
    before = stored(database)
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM scrape_job_results WHERE job_id = 'j1'"))
    refused = run(instance, partition_key=(DAY + timedelta(days=1)).isoformat())
    assert not refused.success
    assert materialized(refused, TABLES[0]) == []
    words = failure_of(refused)
    for part in ("2026-03-03", "have been removed", "Nothing was changed", "Leave these days out"):
        assert part in words
    assert stored(database) == before
    # In a range they are left out, and said.
    mixed = over(instance, 0, 2)
    assert mixed.success
    assert stored(database) == before
    kept = [event.metadata.get("customers kept") for event in materialized(mixed, TABLES[0])]
    assert [value and value.value for value in kept] == [None, 1, None]
    assert materialized(mixed, TABLES[0])[-1].metadata["days kept"].value == 1
    warnings = [entry.user_message for entry in instance.all_logs(mixed.run_id) if entry.level == 30]
    assert len(warnings) == 1
    assert warnings[0].startswith("2026-03-03: kept as they were")


def test_a_day_without_rows_is_materialised_with_none(database: Database, instance: dg.DagsterInstance) -> None:
    result = run(instance, partition_key=DAY.isoformat())
    assert result.success
    (event,) = materialized(result, TABLES[1])
    assert event.metadata["dagster/partition_row_count"].value == 0
    assert database.value("SELECT count(*) FROM daily_job_stats") == 0


def test_the_nightly_run_notes_how_far_it_has_come(database: Database, instance: dg.DagsterInstance) -> None:
    before = datetime.now(UTC)
    newest = yesterdays()
    fill(database, [on(newest, Page(0))])
    mark = "SELECT at FROM omniops_meta.watermarks WHERE name = 'statistics'"
    assert over(instance, newest - 1, newest).success
    assert database.value(mark) is None
    assert over(instance, newest, newest).success
    found = database.value(mark)
    assert isinstance(found, datetime)
    assert before - timedelta(hours=2) < found < before


def test_a_day_that_is_not_over_is_no_partition(instance: dg.DagsterInstance) -> None:
    today = datetime.now(UTC).date()
    with pytest.raises(dg.DagsterUnknownPartitionError):
        run(instance, partition_key=today.isoformat())
    assert run(instance, partition_key=(today - timedelta(days=1)).isoformat()).success


def test_without_a_database_the_run_fails_in_words() -> None:
    nowhere = PostgresResource(database_url="postgresql://omniops@127.0.0.1:1/omniops")
    with dg.DagsterInstance.ephemeral() as ephemeral:
        result = run(ephemeral, job_of(TABLE_ASSETS), partition_key=DAY.isoformat(), resources={"postgres": nowhere})
        assert "cannot be reached" in failure_of(result)


# --- checks -------------------------------------------------------------------------------------------------------


def job_of(selection: dg.AssetSelection) -> dg.JobDefinition:
    return dg.Definitions(
        assets=[*asset_specs(), *STATISTICS_ASSETS, *PERFORMANCE_ASSETS],
        asset_checks=STATISTICS_CHECKS,
        jobs=[dg.define_asset_job("selected", selection, executor_def=dg.in_process_executor)],
        resources={"postgres": PostgresResource()},
    ).resolve_job_def("selected")


TABLE_ASSETS = dg.AssetSelection.assets(*TABLES).without_checks()
CHECKS = dg.AssetSelection.checks(*STATISTICS_CHECKS)
REPORT = dg.AssetSelection.assets("crawl_performance_report").without_checks()


def everything_job() -> dg.JobDefinition:
    """All of the group in one run, as a person selects it in the UI."""
    return job_of(TABLE_ASSETS | CHECKS | REPORT)


def reports_job() -> dg.JobDefinition:
    """The report and the checks of what it is made from, without computing that."""
    return job_of(CHECKS | REPORT)


def check_only(instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    return run(instance, job_of(CHECKS), {"ops": {"daily_statistics_checks": {"config": config}}})


@pytest.mark.parametrize(
    ("table", "damage", "column"),
    [
        ("daily_job_stats", "p95_ms = p95_ms + 1", "p95_ms"),
        ("daily_job_stats", "pages_by_reason = '{\"robots\": 1}'", "pages_by_reason"),
        ("daily_job_stats", "active_seconds = active_seconds + 0.01, total_pages = 3", "active_seconds"),
        ("daily_domain_stats", "jobs = jobs + 1", "jobs"),
        ("daily_domain_stats", "pages_by_http_status = '{}', changed_pages = 7", "pages_by_http_status"),
    ],
)
def test_a_wrong_figure_fails_its_check_with_what_and_what_to_do(
    table: str, damage: str, column: str, database: Database, instance: dg.DagsterInstance
) -> None:
    newest = yesterdays()
    fill(database, [on(newest - d, Page(0), Page(1, "failed", 500, error="http_error: 500")) for d in range(3)])
    assert over(instance, newest - 2, newest).success
    day = DAY + timedelta(days=newest - 1)
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET {damage} WHERE day = :day"), {"day": day})
    result = check_only(instance, seed="a", sample=5)
    found = checked(result)
    failed = found[table, "matches_its_rows"]
    assert not failed.passed
    assert failed.blocking
    assert failed.metadata["rows that differ"].value == 1
    assert failed.metadata["seed"].value == "a"
    assert str(day) in str(failed.metadata["Differences"].value)
    assert column.replace("_", "\\_") in str(failed.metadata["Differences"].value)
    assert "materialise" in str(failed.metadata["what to do"].value)
    (other,) = set(TABLES) - {table}
    assert found[other, "matches_its_rows"].passed


def test_domains_that_do_not_add_up_fail_their_check(database: Database, instance: dg.DagsterInstance) -> None:
    newest = yesterdays()
    fill(database, [on(newest, Page(0), domain=f"{n}.example") for n in range(3)])
    assert over(instance, newest, newest).success
    assert checked(check_only(instance))["daily_domain_stats", "adds_up_to_customers"].passed
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM daily_domain_stats WHERE domain = '1.example'"))
    failed = checked(check_only(instance))["daily_domain_stats", "adds_up_to_customers"]
    assert not failed.passed
    assert failed.metadata["that differ"].value == 1


def test_late_rows_are_no_wrong_figures(database: Database, instance: dg.DagsterInstance) -> None:
    from tests.integration.statistics.world import add_pages

    newest = yesterdays()
    ids = fill(database, [on(newest, Page(0))])
    assert over(instance, newest, newest).success
    with database.engine.begin() as connection:
        add_pages(connection, "j0", ids["acme"], on(newest, Page(5)).pages, start=5)
    found = checked(check_only(instance))["daily_job_stats", "matches_its_rows"]
    assert found.passed
    assert found.metadata["rows with late results (computed again in the night)"].value == 1


def test_a_day_that_is_due_and_missing_fails_its_check(database: Database, instance: dg.DagsterInstance) -> None:
    newest = yesterdays()
    fill(database, [on(newest - d, Page(0)) for d in (5, 6)])
    assert over(instance, newest - 6, newest - 6).success
    failed = checked(check_only(instance))["daily_job_stats", "newest_day_is_there"]
    assert not failed.passed
    assert str(DAY + timedelta(days=newest - 5)) in (failed.description or "")
    assert "statistics_daily" in str(failed.metadata["what to do"].value)


def test_a_bad_size_of_the_sample_is_refused(instance: dg.DagsterInstance) -> None:
    assert "sample is 0: it must be from 1 to 1000" in failure_of(check_only(instance, sample=0))


def test_wrong_figures_hold_the_report_back(database: Database, instance: dg.DagsterInstance, home: Path) -> None:
    newest = yesterdays()
    fill(database, [on(newest - d, Page(0)) for d in range(2)])
    assert over(instance, newest - 1, newest).success
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE daily_domain_stats SET failed_pages = 9 WHERE day = :day"),
            {"day": DAY + timedelta(days=newest - 1)},
        )
    day = (DAY + timedelta(days=newest)).isoformat()
    for job, how in ((everything_job(), {"partition_key": day}), (reports_job(), {})):
        result = run(instance, job, **how)
        assert not result.success
        assert "crawl_performance_report" not in {e.step_key for e in result.all_events}
        assert "did not pass" in str([e.message for e in result.all_events])
    assert not (home / "reports" / "crawl_performance_report.html").exists()
    assert over(instance, newest - 1, newest).success
    assert run(instance, everything_job(), partition_key=day).success
    assert (home / "reports" / "crawl_performance_report.html").exists()


def test_results_that_are_wrong_themselves_are_not_counted(database: Database, instance: dg.DagsterInstance) -> None:
    fill(database, [on(0, Page(0))])
    with psycopg.connect(database.admin_url) as admin:
        # Around the foreign key, as a restore may do it.
        admin.execute("SET session_replication_role = replica")
        admin.execute("UPDATE scrape_job_results SET job_id = 'gone'")
    result = run(instance, partition_key=DAY.isoformat())
    assert not result.success
    assert "daily_statistics" not in {e.step_key for e in result.all_events}
    assert database.value("SELECT count(*) FROM daily_job_stats") == 0


# --- report -------------------------------------------------------------------------------------------------------


class Sources(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def report(instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    return run(
        instance, job_of(REPORT), {"ops": {"crawl_performance_report": {"config": config}}} if config else None
    )


def test_the_report_needs_nothing_else_and_says_what_happened(
    database: Database, instance: dg.DagsterInstance, home: Path
) -> None:
    newest = yesterdays()
    slow = [Page(n, ms=5_000) for n in range(30)]
    failing = [Page(n, "failed", 503, 20, error="http_error: 503", changed=None) for n in range(25)]
    fill(database, [
        on(newest, *slow, domain="slow.example"), on(newest - 1, *slow[:20], domain="slow.example"),
        on(newest, *failing, Page(40), domain="failing.example", customer="globex"),
        on(newest - 40, *slow[:25], domain="slow.example"), on(newest, Page(0), domain="<script>alert(1)</script>"),
    ])  # fmt: skip
    assert over(instance, newest - 40, newest).success
    result = report(instance)
    assert result.success
    page = (home / "reports" / "crawl_performance_report.html").read_text()
    seen = Sources(page)
    assert all(source.startswith(("#", "data:")) for source in seen.loaded)
    assert "script" not in seen.tags
    assert "<script>alert(1)</script>" in seen.text
    for words in ("slow.example", "failing.example", "http_error", "503", "Slowest sites", "Sites that fail most"):
        assert words in seen.text
    (event,) = materialized(result, "crawl_performance_report")
    figures = {
        name: event.metadata[name].value for name in ("pages", "pages in the time before", "failed %", "sites")
    }
    assert figures == {"pages": 77, "pages in the time before": 25, "failed %": round(100 * 25 / 77, 2), "sites": 3}
    assert event.metadata["file"].value == str(home / "reports" / "crawl_performance_report.html")


def test_the_report_of_an_empty_platform_says_so(instance: dg.DagsterInstance, home: Path) -> None:
    assert report(instance).success
    assert "Nothing was crawled" in (home / "reports" / "crawl_performance_report.html").read_text()


def test_the_report_names_days_that_it_does_not_know(
    database: Database, instance: dg.DagsterInstance, home: Path
) -> None:
    newest = yesterdays()
    fill(database, [on(newest - 3, Page(0))])
    result = report(instance)
    (event,) = materialized(result, "crawl_performance_report")
    assert event.metadata["days without statistics"].value == 1
    assert str(DAY + timedelta(days=newest - 3)) in (home / "reports" / "crawl_performance_report.html").read_text()


@pytest.mark.parametrize("days", [0, -1, 366])
def test_a_period_that_cannot_be_meant_is_refused(days: int, instance: dg.DagsterInstance, home: Path) -> None:
    assert f"a report of {days} days is refused" in failure_of(report(instance, days=days))
    assert not (home / "reports").exists()
