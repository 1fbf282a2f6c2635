"""Daily statistics: computed as often as asked for, never to less than what is known, and kept up with late rows."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import text

from resources.postgres import retention
from resources.postgres.connection import DatabaseError
from resources.postgres.statistics import (
    InvalidDays,
    advance_watermark,
    compute,
    count_rows,
    days_to_compute,
    days_without_statistics,
    domain_overview,
    outdated_days,
    overview,
    yesterday,
)
from tests.integration.statistics.world import DAY, Job, Page, add_pages, expected, fill, on, rounded, stored

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

FIRST = date(2025, 1, 1)
NEXT = DAY + timedelta(days=1)


def execute(database: Database, sql: str, **parameters: Any) -> int:
    with database.engine.begin() as connection:
        return connection.execute(text(sql), parameters).rowcount


def everything(database: Database) -> tuple[Any, Any]:
    """All columns of both tables."""
    return (
        database.rows("SELECT * FROM daily_job_stats ORDER BY day, customer_id"),
        database.rows("SELECT * FROM daily_domain_stats ORDER BY day, customer_id, domain"),
    )


def without_times(tables: tuple[Any, Any]) -> list[Any]:
    return [
        [{k: v for k, v in row.items() if k not in ("computed_at", "frozen_at")} for row in table] for table in tables
    ]


def outdated(database: Database, last: date | None = None) -> list[date]:
    with database.engine.begin() as connection:
        return outdated_days(connection, FIRST, last or yesterday(datetime.now(UTC)))


def settle(database: Database) -> None:
    """As if everything that is there had been computed and touched a day ago."""
    execute(database, "UPDATE daily_job_stats SET computed_at = computed_at - interval '1 day'")
    execute(database, "UPDATE daily_domain_stats SET computed_at = computed_at - interval '1 day'")
    backdate(database, "2 days")


def backdate(database: Database, by: str) -> None:
    """As if the results had been written so long before; only a trigger may write that, or a superuser."""
    with psycopg.connect(database.admin_url) as admin:
        admin.execute("UPDATE scrape_job_stats SET updated_at = updated_at - CAST(%s AS interval)", (by,))


# --- once more ----------------------------------------------------------------------------------------------------


def test_to_compute_twice_changes_nothing_but_the_time(database: Database) -> None:
    fill(
        database, [on(d, Page(0, ms=d), Page(1, "failed", error="timeout"), domain=f"{d}.example") for d in range(3)]
    )
    first = compute(database.engine, DAY, DAY + timedelta(days=5))
    before = everything(database)
    second = compute(database.engine, DAY, DAY + timedelta(days=5))
    after = everything(database)
    assert without_times(before) == without_times(after)
    assert all(b["computed_at"] < a["computed_at"] for b, a in zip(before[0], after[0], strict=True))
    assert (first.rows, first.pages, first.kept_days) == (second.rows, second.pages, second.kept_days) == (6, 6, ())


def test_days_without_rows_have_none_and_are_no_error(database: Database) -> None:
    computed = compute(database.engine, DAY, NEXT)
    assert [(d.day, d.customers, d.domains, d.pages, d.kept) for d in computed.days] == [
        (DAY, 0, 0, 0, 0), (NEXT, 0, 0, 0, 0),
    ]  # fmt: skip
    assert not computed.nothing_may_be_written
    assert everything(database) == ([], [])


def test_only_the_days_asked_for_are_written(database: Database) -> None:
    jobs = [on(d, Page(0)) for d in range(3)]
    fill(database, jobs)
    compute(database.engine, NEXT, NEXT)
    assert [row["day"] for row in everything(database)[0]] == [NEXT]


def test_a_job_that_was_unfinished_leaves_the_day_of_its_creation_once_it_has_ended(database: Database) -> None:
    fill(database, [Job(status="running", created=60, started=61, completed=None)])
    compute(database.engine, DAY, NEXT)
    assert [(r["day"], r["jobs_unfinished"]) for r in everything(database)[0]] == [(DAY, 1)]
    execute(
        database, "UPDATE scrape_jobs SET status = 'completed', completed_at = CAST(:at AS timestamptz)",
        at=datetime(NEXT.year, NEXT.month, NEXT.day, 5, tzinfo=UTC),
    )  # fmt: skip
    compute(database.engine, DAY, NEXT)
    assert [(r["day"], r["jobs_unfinished"], r["jobs_completed"]) for r in everything(database)[0]] == [(NEXT, 0, 1)]
    assert [(r["day"], r["jobs_completed"]) for r in everything(database)[1]] == [(NEXT, 1)]


def test_a_range_that_cannot_be_meant_is_refused_before_anything_is_written(database: Database) -> None:
    fill(database, [on(0, Page(0))])
    now = datetime.now(UTC)
    today = now.date()
    for first, last, words in (
        (NEXT, DAY, "ends before it begins"),
        (today, today, "not over"),
        (DAY, today + timedelta(days=400), "not over"),
    ):
        with pytest.raises(InvalidDays, match=words):
            compute(database.engine, first, last, now=now)
    # By its own clock as well, for which tomorrow is not over whenever this began.
    with pytest.raises(InvalidDays, match="not over"):
        compute(database.engine, today, today + timedelta(days=1))
    assert everything(database) == ([], [])


# --- what is known is kept ----------------------------------------------------------------------------------------


def test_days_that_retention_has_frozen_stay_as_they_are(database: Database) -> None:
    old = (datetime.now(UTC).date() - DAY).days - 200
    recent = old + 190
    jobs = [on(old, Page(0), Page(1)), on(recent, Page(0))]
    fill(database, jobs)
    retention.run(database.engine, "scrape_jobs")
    days = (DAY + timedelta(days=old), DAY + timedelta(days=recent))
    before = everything(database)
    assert [row["day"] for row in before[0]] == [days[0]]
    computed = compute(database.engine, days[0], days[1])
    after = everything(database)
    assert [row for row in after[0] if row["day"] == days[0]] == before[0]
    assert [row for row in after[1] if row["day"] == days[0]] == before[1]
    assert computed.kept_days == (days[0],)
    assert rounded(stored(database)) == rounded(expected(jobs))
    assert compute(database.engine, days[0], days[0]).nothing_may_be_written
    assert outdated(database) == [days[1]]


@pytest.mark.parametrize(
    "removal",
    [
        "DELETE FROM scrape_job_results WHERE url LIKE '%/1'",
        "DELETE FROM scrape_job_results",
        "DELETE FROM scrape_jobs WHERE domain = 'b.example'",
        "DELETE FROM scrape_jobs WHERE domain = 'empty.example'",
    ],
)
def test_a_day_whose_rows_were_removed_by_hand_is_kept_and_frozen(database: Database, removal: str) -> None:
    fill(database, [
        on(0, Page(0), Page(1), domain="a.example"), on(0, Page(0), Page(1), domain="b.example"),
        on(0, domain="empty.example"), on(1, Page(0), Page(1), customer="globex"),
    ])  # fmt: skip
    compute(database.engine, DAY, NEXT)
    before = everything(database)
    execute(database, removal + (" AND " if "WHERE" in removal else " WHERE ")
            + "customer_id = (SELECT id FROM customers WHERE slug = 'acme')")  # fmt: skip
    computed = compute(database.engine, DAY, NEXT)
    after = everything(database)
    assert without_times(after) == without_times(before)
    assert [(d.customers, d.domains, d.kept) for d in computed.days] == [(0, 0, 1), (1, 1, 0)]
    for table in after:
        assert {(row["day"], row["frozen_at"] is not None) for row in table} == {(DAY, True), (NEXT, False)}
    # It is told once, and asked for no more.
    assert DAY not in outdated(database)
    assert compute(database.engine, DAY, DAY).nothing_may_be_written


def test_rows_that_come_after_a_removal_do_not_replace_what_was_counted(database: Database) -> None:
    ids = fill(database, [on(0, Page(0), Page(1))])
    compute(database.engine, DAY, DAY)
    before = everything(database)
    execute(database, "DELETE FROM scrape_job_results WHERE url LIKE '%/1'")
    compute(database.engine, DAY, DAY)
    with database.engine.begin() as connection:
        add_pages(connection, "j0", ids["acme"], on(0, *[Page(n) for n in range(5)]).pages, start=10)
    compute(database.engine, DAY, DAY)
    assert without_times(everything(database)) == without_times(before)


def test_an_erased_customer_leaves_no_statistics_behind(database: Database) -> None:
    fill(database, [on(0, Page(0)), on(0, Page(0), customer="globex")])
    compute(database.engine, DAY, DAY)
    execute(database, "DELETE FROM customers WHERE slug = 'acme'")
    compute(database.engine, DAY, DAY)
    assert [len(table) for table in everything(database)] == [1, 1]


# --- kills, and two at once ---------------------------------------------------------------------------------------


def test_a_computation_that_dies_leaves_what_was_there(database: Database) -> None:
    ids = fill(database, [on(d, Page(0)) for d in range(3)])
    compute(database.engine, DAY, DAY + timedelta(days=2))
    before = everything(database)
    with database.engine.begin() as connection:
        for d in range(3):
            add_pages(connection, f"j{d}", ids["acme"], on(d, Page(5)).pages, start=9)
    # Another transaction holds the last day's row, so that the computation has written the first and waits.
    with database.engine.begin() as other:
        other.execute(
            text("SELECT 1 FROM daily_domain_stats WHERE day = :day FOR UPDATE"), {"day": DAY + timedelta(days=2)}
        )
        errors: list[BaseException] = []

        def work() -> None:
            try:
                compute(database.engine, DAY, DAY + timedelta(days=2))
            except DatabaseError as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        with psycopg.connect(database.admin_url, autocommit=True) as admin:
            while not admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND wait_event_type = 'Lock' AND query LIKE '%compute_daily_statistics%'"
            ).fetchall():
                assert thread.is_alive()
        thread.join()
    assert len(errors) == 1
    assert "cannot be reached" in str(errors[0])
    assert everything(database) == before
    compute(database.engine, DAY, DAY + timedelta(days=2))
    assert [row["total_pages"] for row in everything(database)[0]] == [2, 2, 2]


def test_many_computations_at_once_over_the_same_days_end_right(database: Database) -> None:
    jobs = [on(d, *[Page(n, ms=n) for n in range(8)], customer=f"c{d % 3}", domain=f"{d % 2}.example")
            for d in range(12)]  # fmt: skip
    fill(database, jobs)
    errors: list[BaseException] = []

    def work(first: int, last: int) -> None:
        try:
            for _ in range(4):
                compute(database.engine, DAY + timedelta(days=first), DAY + timedelta(days=last))
        except Exception as error:  # noqa: BLE001 - asserted on below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=span) for span in ((0, 11), (0, 11), (3, 8), (6, 11))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert rounded(stored(database)) == rounded(expected(jobs))


def test_a_computation_that_meets_a_deadlock_is_tried_again(database: Database) -> None:
    fill(database, [on(0, Page(0)), on(1, Page(0))])
    compute(database.engine, DAY, NEXT)
    rests: list[float] = []
    results: list[int] = []
    lock = "SELECT 1 FROM daily_job_stats WHERE day = %s FOR UPDATE"
    with psycopg.connect(database.admin_url) as other:
        # The server ends whoever finds the deadlock first, and this one does not look.
        other.execute("SET LOCAL deadlock_timeout = '60s'")
        other.execute(lock, (NEXT,))
        thread = threading.Thread(
            target=lambda: results.append(compute(database.engine, DAY, NEXT, sleep=rests.append).retries)
        )
        thread.start()
        while not database.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            assert thread.is_alive()
        # It has the first day and waits for the second, which this one has; now this one wants the first.
        other.execute(lock, (DAY,))
    thread.join()
    assert results == [1]
    assert len(rests) == 1
    assert len(everything(database)[0]) == 2


# --- late rows ----------------------------------------------------------------------------------------------------


def test_late_rows_make_their_days_outdated_and_no_other_day(database: Database) -> None:
    ids = fill(database, [on(d, Page(0)) for d in range(5)])
    compute(database.engine, DAY, DAY + timedelta(days=4))
    settle(database)
    assert outdated(database) == []
    with database.engine.begin() as connection:
        add_pages(connection, "j2", ids["acme"], on(2, Page(7)).pages, start=5)
    assert outdated(database) == [DAY + timedelta(days=2)]
    compute(database.engine, DAY + timedelta(days=2), DAY + timedelta(days=2))
    settle(database)
    assert outdated(database) == []


def test_a_result_that_bears_an_earlier_day_than_its_job_makes_that_day_outdated(database: Database) -> None:
    ids = fill(database, [on(d, Page(0)) for d in range(3)])
    compute(database.engine, DAY, DAY + timedelta(days=2))
    settle(database)
    with database.engine.begin() as connection:
        add_pages(connection, "j2", ids["acme"], on(0, Page(7)).pages, start=5)
    assert DAY in outdated(database)


def test_a_job_that_ends_makes_its_day_outdated_and_that_of_its_creation(database: Database) -> None:
    # Yesterday evening until now.
    now = datetime.now(UTC)
    fill(database, [Job(status="running", created=60, completed=None)])
    compute(database.engine, DAY, DAY)
    settle(database)
    execute(database, "UPDATE scrape_jobs SET status = 'cancelled'")
    assert outdated(database, now.date()) == [DAY, now.date()]


def test_days_that_were_never_computed_are_outdated(database: Database) -> None:
    """The daemon was down for three nights."""
    fill(database, [on(d, Page(0)) for d in range(4)])
    compute(database.engine, DAY, DAY)
    settle(database)
    with database.engine.begin() as connection:
        tick = datetime(2026, 3, 6, 0, 30, tzinfo=UTC)
        assert days_to_compute(connection, FIRST, tick) == [DAY + timedelta(days=d) for d in (1, 2, 3)]
        # Yesterday is computed with or without rows.
        tick = datetime(2026, 3, 10, 0, 30, tzinfo=UTC)
        assert days_to_compute(connection, FIRST, tick) == [*(DAY + timedelta(days=d) for d in (1, 2, 3)),
                                                            date(2026, 3, 9)]  # fmt: skip


def test_nothing_before_the_first_day_is_computed(database: Database) -> None:
    fill(database, [on(d, Page(0)) for d in range(3)])
    with database.engine.begin() as connection:
        tick = datetime(2026, 3, 5, 0, 30, tzinfo=UTC)
        assert days_to_compute(connection, NEXT, tick) == [NEXT, DAY + timedelta(days=2)]
        assert days_to_compute(connection, date(2026, 3, 5), tick) == []


def test_the_watermark_stays_before_the_first_change_that_no_computation_has_seen(database: Database) -> None:
    now = datetime.now(UTC)
    ids = fill(database, [on(d, Page(0)) for d in range(3)])
    touched = database.value("SELECT min(updated_at) FROM scrape_job_stats")
    with database.engine.begin() as connection:
        mark = advance_watermark(connection, FIRST, now)
        assert mark == touched - timedelta(hours=1)  # type: ignore[operator]
        assert len(outdated_days(connection, FIRST, yesterday(now))) == 3
    compute(database.engine, DAY, DAY + timedelta(days=2))
    settle(database)
    with database.engine.begin() as connection:
        mark = advance_watermark(connection, FIRST, datetime.now(UTC))
        assert mark > now - timedelta(hours=2)
    # A tick is lost, a computation fails: the change is found all the same, at any later time.
    with database.engine.begin() as connection:
        add_pages(connection, "j1", ids["acme"], on(1, Page(7)).pages, start=5)
    for _ in range(3):
        with database.engine.begin() as connection:
            advance_watermark(connection, FIRST, datetime.now(UTC))
            assert outdated_days(connection, FIRST, yesterday(datetime.now(UTC))) == [NEXT]


def test_the_watermark_does_not_hide_days_before_the_first_day_that_it_was_made_for(database: Database) -> None:
    fill(database, [on(d, Page(0)) for d in range(3)])
    settle(database)
    last = DAY + timedelta(days=2)
    compute(database.engine, last, last)
    settle(database)
    with database.engine.begin() as connection:
        advance_watermark(connection, last, datetime.now(UTC))
        assert outdated_days(connection, last, last) == []
        # Somebody sets OMNIOPS_STATISTICS_FIRST_DAY to an earlier day.
        assert outdated_days(connection, FIRST, last) == [DAY, NEXT]


def test_days_of_the_running_day_hold_the_watermark_back(database: Database) -> None:
    """Today's rows are computed tomorrow; if that fails, the day after must still find them."""
    now = datetime.now(UTC)
    fill(database, [on((now.date() - DAY).days, Page(0))])
    backdate(database, "3 hours")
    touched = database.value("SELECT greatest(updated_at, completed_at) FROM scrape_job_stats JOIN scrape_jobs "
                             "USING (job_id)")  # fmt: skip
    with database.engine.begin() as connection:
        assert advance_watermark(connection, FIRST, now) <= touched - timedelta(hours=1)  # type: ignore[operator]
        tomorrow = now + timedelta(days=2)
        assert now.date() in days_to_compute(connection, FIRST, tomorrow)


# --- pictures and counts ------------------------------------------------------------------------------------------


def test_days_with_rows_and_without_statistics_are_named(database: Database) -> None:
    fill(database, [on(0, Page(0)), on(2), on(4, Page(0))])
    compute(database.engine, DAY, DAY)
    with database.engine.begin() as connection:
        missing = days_without_statistics(connection, DAY - timedelta(days=9), DAY + timedelta(days=9))
        assert missing == [DAY + timedelta(days=2), DAY + timedelta(days=4)]
        assert days_without_statistics(connection, NEXT, DAY) == []


def test_overviews_sum_customers_and_weigh_latency_by_pages(database: Database) -> None:
    slow, fast = [Page(0, ms=1000)], [Page(n, ms=100) for n in range(3)]
    fill(database, [on(0, *slow), on(0, *fast, customer="globex", status="failed"),
                    on(1, Page(0, "skipped", ms=None), domain="small.example")])  # fmt: skip
    compute(database.engine, DAY, NEXT)
    with database.engine.begin() as connection:
        first, second = overview(connection, DAY, NEXT)
        domains = domain_overview(connection, DAY, NEXT, 1)
        counts = count_rows(connection, "daily_job_stats", DAY, DAY)
    assert (first.customers, first.successful, first.completed, first.failed_jobs, first.p95_ms) == (2, 4, 1, 1, 325)
    assert (second.skipped, second.p95_ms, second.kept) == (1, None, 0)
    assert [(d.domain, d.day, d.pages, d.p95_ms) for d in domains] == [("shop.example", DAY, 4, 325)]
    assert counts == ({DAY: 2}, 3)
