"""The retention report and forecast against rows of known age."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from assets.retention import build_retention_forecast, build_retention_report
from resources.postgres.catalogue import TABLES
from resources.postgres.reports import retention_forecast
from resources.postgres.reports.retention_audit import allowed_delay, retention_audit, violations_of_table
from resources.postgres.reports.retention_forecast import due_rows, forecast
from resources.postgres.retention import REMOVABLE, preview, run
from tests.integration.retention.seeds import execute, make_conversation, make_customer, make_job, make_messages

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from resources.postgres.reports.retention_audit import PolicyAudit, RetentionAudit
    from tests.support.databases import Database


def _audit(database: Database) -> RetentionAudit:
    with database.engine.connect() as connection:
        return retention_audit(connection)


def _policy(audit: RetentionAudit, name: str) -> PolicyAudit:
    return next(policy for policy in audit.policies if policy.policy == name)


def _make_run(
    database: Database, policy: str, *, days_ago: float, removed: int = 0, status: str = "completed",
    dry_run: bool = False,
) -> None:  # fmt: skip
    execute(
        database,
        """INSERT INTO retention_runs (policy, dry_run, status, started_at, completed_at, rows_removed, error_message)
           SELECT :policy, :dry, :status, t.at, t.at, :removed, CASE WHEN :status = 'failed' THEN 'lock timeout' END
           FROM (SELECT now() - make_interval(secs => :days * 86400) AS at) AS t""",
        policy=policy, dry=dry_run, status=status, days=days_ago, removed=removed,
    )  # fmt: skip


# Rows of every policy that fall due over the next weeks, in a few customers.
def _seed(database: Database) -> dict[str, UUID]:
    customers = {slug: make_customer(database, slug) for slug in ("acme", "bolt", "cargo")}
    execute(
        database,
        """INSERT INTO customer_configs (customer_id, domain, settings)
           VALUES (:id, 'short.example', '{"retention": {"conversations_days": 30}}')""",
        id=customers["bolt"],
    )
    for slug, customer in customers.items():
        for age in (61.5, 75.5, 88.5, 89.5, 91.5):
            make_job(database, customer, f"{slug}-{age}", age_days=age, results=7, frontier=3)
        make_job(database, customer, f"{slug}-running", age_days=200, status="running", results=2)
        for age in (2.0, 85.5, 89.7, 95.0):
            make_conversation(database, customer, age_days=age, messages=3)
        make_conversation(database, customer, age_days=25.5, domain="short.example")
        make_messages(database, customer, 4, expired_hours=-10)
        make_messages(database, customer, 2, expired_hours=1, status="completed")
        make_messages(database, customer, 1, expired_hours=2, status="processing", leased_seconds=600)
        for age in (340.5, 364.5, 370.0):
            execute(
                database,
                """INSERT INTO conversation_funnel (customer_id, stage, created_at)
                   VALUES (:c, 'opened', now() - make_interval(secs => :age * 86400))""",
                c=customer, age=age,
            )  # fmt: skip
            execute(
                database,
                """INSERT INTO alert_history (customer_id, alert, episode, severity, message, opened_at, closed_at)
                   SELECT :c, 'a', gen_random_uuid()::text, 'info', 'm', t.at, t.at
                   FROM (SELECT now() - make_interval(secs => :age * 86400) AS at) AS t""",
                c=customer, age=age,
            )  # fmt: skip
            execute(
                database,
                """INSERT INTO daily_job_stats (day, customer_id, frozen_at)
                   VALUES ((now() AT TIME ZONE 'UTC')::date - CAST(:age AS integer), :c, now())""",
                c=customer, age=int(age),
            )  # fmt: skip
    execute(
        database,
        """INSERT INTO storage_snapshots (taken_at, table_name)
           SELECT now() - make_interval(days => n), 'scrape_jobs' FROM generate_series(340, 370, 3) AS n""",
    )
    return customers


# Where each table keeps its times; moving them all back by days is the same as waiting for so long.
_TIMES = {
    "message_queue": ("expires_at", "leased_until", "created_at"),
    "scrape_jobs": ("created_at", "started_at", "completed_at"),
    "scrape_job_results": ("created_at",),
    "conversations": ("created_at", "updated_at", "ended_at"),
    "messages": ("created_at",),
    "conversation_metadata": ("updated_at",),
    "conversation_funnel": ("created_at",),
    "alert_history": ("opened_at", "closed_at"),
    "storage_snapshots": ("taken_at",),
    "daily_job_stats": ("day",),
    "daily_domain_stats": ("day",),
}


def _wait(plant: object, days: int) -> None:
    assert callable(plant)
    for table, columns in _TIMES.items():
        # By ascending order of keys the new days never meet the old ones: all of a table moves in one statement.
        moved = ", ".join(
            f"{c} = {c} - {days}" if c == "day" else f"{c} = {c} - make_interval(days => {days})" for c in columns
        )
        if table.startswith("daily_"):
            plant(f"UPDATE {table} SET day = day - 100000")
            plant(f"UPDATE {table} SET day = day + 100000 - {days}")
        else:
            plant(f"UPDATE {table} SET {moved}")


@pytest.mark.parametrize("days", [0, 1, 2, 5, 15, 30])
def test_what_is_forecast_for_a_day_is_what_a_run_removes_on_it(database: Database, plant: object, days: int) -> None:
    customers = _seed(database)
    execute(
        database,
        "INSERT INTO legal_holds (customer_id, reason, placed_by) VALUES (:id, 'a letter', 'legal')",
        id=customers["cargo"],
    )
    with database.engine.connect() as connection:
        foreseen = forecast(connection)
    assert foreseen.step_days == 1
    assert foreseen.held == ("cargo",)
    expected: dict[tuple[str, str | None], int] = {}
    for due in foreseen.due:
        if due.by <= foreseen.now + timedelta(days=days):
            expected[due.table, due.customer] = expected.get((due.table, due.customer), 0) + due.rows
    if days:
        _wait(plant, days)
    removed: dict[tuple[str, str | None], int] = {}
    # Analytics first: the removal of jobs makes daily statistics of days that may be a year old by then.
    for policy in sorted(REMOVABLE):
        for row in run(database.engine, policy).rows:
            removed[row.table, row.customer] = row.rows
    assert removed == expected
    assert len(expected) >= (14 if days else 10)


def test_the_forecast_covers_every_table_that_a_preview_does(database: Database) -> None:
    _seed(database)
    with database.engine.connect() as connection:
        for policy in REMOVABLE:
            now = connection.exec_driver_sql("SELECT now() + interval '400 days'").scalar_one()
            seen = {(row.table, row.customer): row.rows for row in preview(connection, policy, at=now)}
            due = {(row.table, row.customer): row.rows for row in due_rows(connection, policy, [now])}
            assert due == seen
            # Every table of the policy stands in it, or the seed above has to have rows of it.
            assert {table for table, _ in due} >= {
                n for n, e in TABLES.items() if e.policy == policy and n != "daily_domain_stats"
            }


def test_each_row_is_forecast_once_and_in_order_of_time(database: Database) -> None:
    _seed(database)
    with database.engine.connect() as connection:
        by_day = forecast(connection)
        horizon = by_day.moments[-1]
        at_once = [row for policy in REMOVABLE for row in due_rows(connection, policy, [horizon])]
    assert sum(row.rows for row in by_day.due) == sum(row.rows for row in at_once)
    assert len(by_day.moments) == 31
    assert list(by_day.moments) == sorted(by_day.moments)


def test_a_large_forecast_goes_by_week(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    _seed(database)
    with database.engine.connect() as connection:
        by_day = forecast(connection)
        monkeypatch.setattr(retention_forecast, "MAX_ROWS_BY_DAY", 3)
        by_week = forecast(connection)
    assert by_week.step_days == 7
    assert [round((m - by_week.now).total_seconds() / 86_400) for m in by_week.moments] == [0, 7, 14, 21, 28, 30]
    assert sum(row.rows for row in by_week.due) == sum(row.rows for row in by_day.due)


def test_a_policy_is_overdue_when_no_run_was_completed_in_its_period(database: Database) -> None:
    assert set(_audit(database).overdue) == set(REMOVABLE), "none ever ran"
    for policy, days in (("message_queue", 1.1), ("scrape_jobs", 7.9), ("conversations", 8.1), ("analytics", 6.0)):
        _make_run(database, policy, days_ago=days)
    assert _audit(database).overdue == ("conversations",)
    # What only looked, and what failed, removed nothing.
    _make_run(database, "conversations", days_ago=0.1, dry_run=True)
    _make_run(database, "conversations", days_ago=0.2, status="failed")
    assert _audit(database).overdue == ("conversations",)
    _make_run(database, "conversations", days_ago=0.1)
    assert _audit(database).overdue == ()


def test_runs_of_the_last_30_and_90_days_are_counted_with_their_failures(database: Database) -> None:
    _make_run(database, "scrape_jobs", days_ago=1, removed=10)
    _make_run(database, "scrape_jobs", days_ago=2, removed=5, status="failed")
    _make_run(database, "scrape_jobs", days_ago=60, removed=100)
    _make_run(database, "scrape_jobs", days_ago=100, removed=1000)
    _make_run(database, "scrape_jobs", days_ago=3, removed=77, dry_run=True)
    audit = _audit(database)
    jobs = _policy(audit, "scrape_jobs")
    assert (jobs.runs_30, jobs.failures_30, jobs.removed_30, jobs.removed_90) == (2, 1, 15, 115)
    assert jobs.last_error == "lock timeout"
    assert [rows for _, policy, rows in audit.removed_by_day if policy == "scrape_jobs"] == [100, 5, 10]


def test_a_row_that_a_run_passed_over_is_a_violation_and_one_that_waits_for_it_is_none(database: Database) -> None:
    customer = make_customer(database, "acme")
    delay = allowed_delay("scrape_jobs").total_seconds() / 86_400
    make_job(database, customer, "waits", age_days=90 + delay - 1, results=3)
    make_job(database, customer, "forgotten", age_days=90 + delay + 1, results=5)
    make_job(database, customer, "unfinished", age_days=400, status="running")
    make_messages(database, customer, 3, expired_hours=40)
    audit = _audit(database)
    found = {(row.table, row.customer): row.rows for row in audit.violations}
    assert found == {
        ("scrape_jobs", "acme"): 1, ("scrape_job_results", "acme"): 5, ("scrape_job_stats", "acme"): 1,
        ("message_queue", "acme"): 3,
    }  # fmt: skip
    table = next(t for t in audit.tables if t.table == "scrape_job_results")
    assert (table.rows, table.expired, table.violations) == (8, 8, 5)
    with database.engine.connect() as connection:
        assert violations_of_table(connection, "scrape_jobs").count == 1
        assert violations_of_table(connection, "message_queue").samples == ({"customer": "acme", "rows": 3},)
        assert violations_of_table(connection, "conversations").count == 0
    for policy in REMOVABLE:
        run(database.engine, policy)
    assert _audit(database).violations == ()


def test_rows_under_a_hold_are_no_violation_and_those_of_one_just_released_are_excused(database: Database) -> None:
    held, released, longer = (make_customer(database, slug) for slug in ("held", "released", "longer"))
    for customer, slug in ((held, "h"), (released, "r"), (longer, "l")):
        make_job(database, customer, f"job-{slug}", age_days=200)
    for customer, days in ((held, None), (released, 2), (longer, 30)):
        execute(
            database,
            """INSERT INTO legal_holds (customer_id, reason, placed_by, placed_at, released_at)
               VALUES (:id, 'a secret case', 'legal', now() - interval '100 days',
                       now() - make_interval(days => CAST(:days AS integer)))""",
            id=customer, days=days,
        )  # fmt: skip
    audit = _audit(database)
    assert {row.customer for row in audit.violations} == {"longer"}
    assert {row.customer for row in audit.excused} == {"released"}
    assert [(h.customer, h.holds) for h in audit.held] == [("held", 1)]


def test_the_pages_name_who_is_concerned_and_no_reason_of_a_hold(database: Database, tmp_path: Path) -> None:
    customers = _seed(database)
    execute(
        database,
        "INSERT INTO legal_holds (customer_id, reason, placed_by) VALUES (:id, 'a secret case', 'legal')",
        id=customers["acme"],
    )
    with database.engine.connect() as connection:
        report = build_retention_report(connection, "db")
        ahead = build_retention_forecast(connection, "db")
    page = report.write(tmp_path).read_text()
    assert "bolt" in page
    assert "short.example" in page
    assert "a secret case" not in page
    assert report.figures["customers under a hold"] == 1
    assert report.figures["violations"] == sum(r.rows for r in _audit(database).violations)
    assert int(str(ahead.figures["rows to expire in 30 days"])) > 0
    assert "acme" in ahead.write(tmp_path).read_text(), "held customers are named"


def test_the_oldest_row_is_found_for_each_table_that_has_an_age(database: Database) -> None:
    _seed(database)
    ages = {t.table: (_audit(database).at - t.oldest).days for t in _audit(database).tables if t.oldest}
    assert ages["scrape_jobs"] == 91
    assert ages["conversations"] == 95
    assert ages["conversation_funnel"] == ages["alert_history"] == 370
    assert ages["storage_snapshots"] == 370
