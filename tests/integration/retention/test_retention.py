"""What has expired goes, in bounded batches; nothing else does, whatever happens in between."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources.postgres.compliance import place_hold
from resources.postgres.retention import (
    REMOVABLE,
    InvalidRetentionDays,
    RetentionFailed,
    RetentionResult,
    UnknownPolicy,
    preview,
    run,
)
from tests.integration.retention.seeds import (
    counts,
    execute,
    make_conversation,
    make_customer,
    make_job,
    make_messages,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

_DAILY = "SELECT * FROM daily_job_stats ORDER BY day, customer_id"
_DAILY_DOMAINS = "SELECT * FROM daily_domain_stats ORDER BY day, customer_id, domain"


def _seen(database: Database, policy: str, days: int | None = None) -> list[dict[str, Any]]:
    with database.engine.begin() as connection:
        return [row.as_dict() for row in preview(connection, policy, days)]


def _of(result: RetentionResult) -> list[dict[str, Any]]:
    return [row.as_dict() for row in result.rows]


@pytest.fixture
def populated(database: Database) -> Database:
    """Expired rows and live ones of every policy, for two customers."""
    for slug in ("acme", "globex"):
        customer = make_customer(database, slug)
        for number in range(6):
            make_job(database, customer, f"{slug}-old-{number}", age_days=91 + number, results=30, frontier=5)
        make_job(database, customer, f"{slug}-new", age_days=89, results=30, frontier=5)
        for status in ("queued", "running", "paused"):
            make_job(database, customer, f"{slug}-{status}", age_days=400, results=3, status=status)
        make_messages(database, customer, 7, expired_hours=1)
        make_messages(database, customer, 3, expired_hours=1, status="completed")
        make_messages(database, customer, 5, expired_hours=-1)
        make_messages(database, customer, 2, expired_hours=1, status="processing", leased_seconds=60)
        make_messages(database, customer, 4, expired_hours=1, status="processing", leased_seconds=-60)
        for age in (91, 120, 89):
            make_conversation(database, customer, age_days=age)
        # Old, but somebody wrote lately.
        make_conversation(database, customer, age_days=200, last_message_days=5)
        for table, column, rest, values in (
            ("conversation_funnel", "created_at", "stage", "'asked'"),
            ("alert_history", "opened_at", "closed_at, alert, episode, severity, message",
             "now(), 'a', gen_random_uuid()::text, 'info', 'm'"),
        ):  # fmt: skip
            execute(
                database,
                f"""INSERT INTO {table} (customer_id, {column}, {rest})
                    SELECT :c, now() - make_interval(days => d), {values}
                    FROM unnest(ARRAY[10, 364, 366, 500]) AS d""",
                c=customer,
            )
        execute(
            database,
            "INSERT INTO daily_job_stats (day, customer_id) SELECT current_date - d, :c "
            "FROM unnest(ARRAY[360, 370]) AS d",
            c=customer,
        )
    execute(
        database,
        "INSERT INTO alert_history (opened_at, alert, episode, severity, message) "
        "VALUES (now() - interval '500 days', 'a', 'still open', 'info', 'm')",
    )
    execute(
        database,
        "INSERT INTO storage_snapshots (taken_at, table_name) "
        "SELECT now() - make_interval(days => d), 't' FROM unnest(ARRAY[10, 400]) AS d",
    )
    return database


@pytest.mark.parametrize("policy", REMOVABLE)
def test_what_a_preview_and_a_dry_run_show_is_what_a_run_removes(populated: Database, policy: str) -> None:
    before = counts(populated)
    seen = _seen(populated, policy)
    dry = run(populated.engine, policy, dry_run=True)
    assert _of(dry) == seen
    unchanged = {**before, "retention_runs": before["retention_runs"] + 1}
    assert counts(populated) == unchanged
    done = run(populated.engine, policy, batch_rows=3)
    assert _of(done) == seen
    assert done.batches > 1
    after = counts(populated)
    removed = {name: before[name] - after[name] for name in before if before[name] > after[name]}
    assert removed == {name: n for name in before if (n := done.count(name))}
    assert run(populated.engine, policy).rows == ()


def test_what_must_stay_stays(populated: Database) -> None:
    for policy in REMOVABLE:
        run(populated.engine, policy, batch_rows=3)
    jobs = populated.rows("SELECT DISTINCT regexp_replace(job_id, '.*-', '') AS kind FROM scrape_jobs ORDER BY 1")
    assert [row["kind"] for row in jobs] == ["new", "paused", "queued", "running"]
    assert populated.rows("SELECT DISTINCT status, expires_at > now() AS live, leased_until > now() AS leased "
                          "FROM message_queue ORDER BY 1") == [
        {"status": "pending", "live": True, "leased": None},
        {"status": "processing", "live": False, "leased": True},
    ]  # fmt: skip
    assert populated.value("SELECT count(*) FROM conversations") == 4
    assert populated.value("SELECT count(*) FROM alert_history WHERE closed_at IS NULL") == 1


def test_the_sql_functions_return_how_many_they_deleted(populated: Database) -> None:
    with populated.engine.begin() as connection:
        assert connection.scalar(text("SELECT cleanup_expired_message_queue()")) == 28
        assert connection.scalar(text("SELECT cleanup_old_scrape_jobs(days => 95)")) == 4
        assert connection.scalar(text("SELECT cleanup_old_scrape_jobs()")) == 8
        assert connection.scalar(text("SELECT cleanup_old_conversations(90)")) == 4
        assert connection.scalar(text("SELECT cleanup_old_analytics()")) == 11
        assert connection.scalar(text("SELECT cleanup_old_scrape_jobs()")) == 0
    for table in ("scrape_job_results", "scrape_job_stats", "crawl_frontier"):
        assert populated.value(f"SELECT count(*) FROM {table} WHERE job_id LIKE '%old%'") == 0


def test_absurd_days_are_refused_by_name_and_nothing_is_done(database: Database) -> None:
    for days in (0, -1, 36_501, 2**31 - 1):
        for function in ("cleanup_old_scrape_jobs", "cleanup_old_conversations", "cleanup_old_analytics"):
            with (
                database.engine.connect() as connection,
                pytest.raises(DBAPIError, match=f"retention of {days} days"),
            ):
                connection.execute(text(f"SELECT {function}(:days)"), {"days": days})
    absurd: list[Any] = [0, -1, 36_501, 10**30, True, 1.5, "90"]
    for days in absurd:
        with pytest.raises(InvalidRetentionDays, match=r"retention of .* days is refused"):
            run(database.engine, "scrape_jobs", days)
        with pytest.raises(InvalidRetentionDays, match="takes no days"):
            run(database.engine, "message_queue", days)
    assert database.value("SELECT count(*) FROM retention_runs") == 0


def test_an_unknown_policy_is_named_with_the_list(database: Database) -> None:
    with pytest.raises(UnknownPolicy, match="'jobs' is unknown; the policies are message_queue, scrape_jobs"):
        run(database.engine, "jobs")
    with pytest.raises(UnknownPolicy, match="until_erasure keeps its rows until the customer's erasure"):
        run(database.engine, "until_erasure")


def test_only_the_service_may_remove(populated: Database) -> None:
    calls = ("cleanup_expired_message_queue()", "cleanup_old_scrape_jobs(1)", "expired_messages()",
             "compute_daily_statistics(current_date, current_date)")  # fmt: skip
    for role in ("authenticated", "anon"):
        with populated.engine.begin() as connection:
            connection.execute(text(f"SET LOCAL ROLE {role}"))
            for call in calls:
                with pytest.raises(DBAPIError, match="permission denied for function"), connection.begin_nested():
                    connection.execute(text(f"SELECT {call}"))
    with populated.engine.begin() as connection:
        connection.execute(text("SET LOCAL ROLE service_role"))
        assert connection.scalar(text("SELECT cleanup_expired_message_queue()")) == 28


# --- legal holds ------------------------------------------------------------------------------------------------


def test_nothing_of_a_held_customer_goes(populated: Database) -> None:
    hold = place_hold(populated.engine, "acme", "case 1")
    before = populated.value("SELECT count(*) FROM scrape_job_results WHERE customer_id = :c", c=hold.customer_id)
    for policy in REMOVABLE:
        result = run(populated.engine, policy)
        assert {row.customer for row in result.rows} <= {"globex", None}
        assert result.held == ("acme",)
    assert before == populated.value(
        "SELECT count(*) FROM scrape_job_results WHERE customer_id = :c", c=hold.customer_id
    )


def test_a_hold_placed_in_the_middle_stops_the_removal_of_its_customer(populated: Database) -> None:
    at_hold: list[object] = []

    def hold_acme(_: int) -> None:
        if not at_hold:
            place_hold(populated.engine, "acme", "case 2")
            at_hold.append(_acme())

    def _acme() -> list[dict[str, object]]:
        return populated.rows("""SELECT r.job_id, count(*) FROM scrape_job_results AS r JOIN customers AS c
                                 ON c.id = r.customer_id WHERE c.slug = 'acme' GROUP BY 1 ORDER BY 1""")

    run(populated.engine, "scrape_jobs", batch_rows=10, on_batch=hold_acme)
    assert at_hold == [_acme()]
    assert populated.value("SELECT count(*) FROM scrape_jobs WHERE job_id LIKE 'globex-old%'") == 0


def test_a_hold_waits_for_the_batch_under_way_and_then_binds(populated: Database) -> None:
    placed = threading.Event()

    def place() -> None:
        place_hold(populated.engine, "acme", "case 3")
        placed.set()

    thread = threading.Thread(target=place)
    with populated.engine.begin() as batch:
        batch.execute(text("SELECT * FROM remove_expired_scrape_jobs(90, 1000)")).all()
        thread.start()
        assert not placed.wait(0.5)
    assert placed.wait(5)
    thread.join()


def test_a_batch_that_waited_for_a_hold_removes_nothing_of_that_customer(populated: Database) -> None:
    done: list[RetentionResult] = []
    thread = threading.Thread(target=lambda: done.append(run(populated.engine, "message_queue")))
    with populated.engine.begin() as connection:
        connection.execute(
            text("""INSERT INTO legal_holds (customer_id, reason, placed_by)
                                   SELECT id, 'case 4', 'compliance' FROM customers WHERE slug = 'acme'""")
        )
        thread.start()
        time.sleep(0.5)
    thread.join(200)
    assert [row.customer for row in done[0].rows] == ["globex"]


# --- conversations ----------------------------------------------------------------------------------------------


def test_a_customers_configuration_says_how_long_its_conversations_are_kept(database: Database) -> None:
    # What is no whole number of days from 1 to 36500 counts as not set.
    kept: dict[str, tuple[int, ...]] = {"30": (20,), "200": (20, 60, 100)}
    kept |= dict.fromkeys(('"x"', "0", "-5", "1.5", "99999", "null", "[30]", "true", '{"days": 30}'), (20, 60))
    made: dict[object, tuple[str, int]] = {}
    for number, value in enumerate(kept):
        customer = make_customer(database, f"customer-{number}")
        execute(
            database,
            """INSERT INTO customer_configs (customer_id, domain, settings)
               VALUES (:c, 'shop.example', CAST(:s AS jsonb))""",
            c=customer, s=f'{{"retention": {{"conversations_days": {value}}}}}',
        )  # fmt: skip
        for age in (20, 60, 100):
            for domain in ("shop.example", "www.shop.example", None):
                made[make_conversation(database, customer, age_days=age, domain=domain)] = (value, age)
    run(database.engine, "conversations")
    left = [made[row["id"]] for row in database.rows("SELECT id FROM conversations")]
    assert sorted(left) == sorted((value, age) for value, ages in kept.items() for age in ages for _ in range(3))


def test_a_domains_own_days_count_before_the_customers_others(database: Database) -> None:
    customer = make_customer(database, "acme")
    for domain, days in (("a.example", 30), ("b.example", 60)):
        execute(
            database,
            "INSERT INTO customer_configs (customer_id, domain, settings) VALUES (:c, :d, CAST(:s AS jsonb))",
            c=customer, d=domain, s=f'{{"retention": {{"conversations_days": {days}}}}}',
        )  # fmt: skip
    for of_domain in ("a.example", "b.example", None):
        make_conversation(database, customer, age_days=45, domain=of_domain)
    run(database.engine, "conversations")
    left = database.rows("SELECT domain FROM conversations ORDER BY 1")
    assert [row["domain"] for row in left] == ["b.example", None]


# --- statistics -------------------------------------------------------------------------------------------------


def _without(rows: list[dict[str, object]], *names: str) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def test_statistics_are_computed_before_their_rows_go_and_outlive_them(database: Database) -> None:
    customer = make_customer(database, "acme")
    # They end at noon: a job's results are of an hour before, and belong to the same day.
    now = datetime.now(UTC)
    since_noon = (now - now.replace(hour=12, minute=0, second=0)) / timedelta(days=1)
    for number in range(4):
        make_job(database, customer, f"old-{number}", age_days=100 + since_noon + number // 2, results=40)
    wanted = database.rows("""
        SELECT (r.created_at AT TIME ZONE 'UTC')::date AS day, count(*) AS total_pages,
               count(*) FILTER (WHERE r.status = 'success') AS successful_pages,
               count(*) FILTER (WHERE r.status = 'failed') AS failed_pages,
               count(*) FILTER (WHERE r.status = 'skipped') AS skipped_pages,
               sum(r.tries - 1) AS retries, sum(r.bytes) AS bytes, count(DISTINCT r.job_id) AS jobs,
               percentile_disc(0.5) WITHIN GROUP (ORDER BY r.processing_time_ms) AS p50_ms,
               percentile_disc(0.99) WITHIN GROUP (ORDER BY r.processing_time_ms) AS p99_ms
        FROM scrape_job_results AS r GROUP BY 1 ORDER BY 1""")
    run(database.engine, "scrape_jobs", batch_rows=15)
    assert database.value("SELECT count(*) FROM scrape_job_results") == 0
    kept = [row for row in database.rows(_DAILY) if row["total_pages"]]
    assert [{name: row[name] for name in wanted[0] if name != "jobs"} for row in kept] == _without(wanted, "jobs")
    domains = database.rows(_DAILY_DOMAINS)
    assert [{name: row[name] for name in wanted[0]} for row in domains] == wanted
    assert database.value("SELECT sum(jobs_completed) FROM daily_job_stats") == 4


def test_a_day_is_not_computed_again_once_its_rows_are_gone(database: Database) -> None:
    customer = make_customer(database, "acme")
    make_job(database, customer, "old", age_days=100, results=40)
    make_job(database, customer, "kept", age_days=100, results=7, status="running")
    run(database.engine, "scrape_jobs")
    before = (database.rows(_DAILY), database.rows(_DAILY_DOMAINS))
    assert sum(int(str(row["total_pages"])) for row in before[0]) == 47
    with database.engine.begin() as connection:
        connection.execute(text("SELECT compute_daily_statistics(current_date - 200, current_date)"))
    assert (database.rows(_DAILY), database.rows(_DAILY_DOMAINS)) == before


def test_a_day_whose_rows_are_there_is_computed_as_often_as_asked_for(database: Database) -> None:
    customer = make_customer(database, "acme")
    make_job(database, customer, "one", age_days=10, results=4, status="running")
    compute = text("SELECT compute_daily_statistics(current_date - 20, current_date)")
    with database.engine.begin() as connection:
        connection.execute(compute)
    unfinished = database.value("SELECT sum(jobs_unfinished) FROM daily_job_stats")
    make_job(database, customer, "two", age_days=10, results=4)
    execute(database, "UPDATE scrape_jobs SET status = 'completed' WHERE job_id = 'one'")
    with database.engine.begin() as connection:
        connection.execute(compute)
    assert (unfinished, database.value("SELECT sum(jobs_unfinished) FROM daily_job_stats")) == (1, 0)
    assert database.value("SELECT sum(total_pages) FROM daily_job_stats") == 8
    assert database.value("SELECT sum(jobs_completed) FROM daily_job_stats") == 2


# --- two at once, kills, failures -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["scrape_jobs", "conversations", "analytics"])
def test_two_runs_at_once_share_the_work_and_count_no_row_twice(populated: Database, policy: str) -> None:
    wanted = {row["table"]: 0 for row in _seen(populated, policy)}
    for row in _seen(populated, policy):
        wanted[row["table"]] += row["rows"]
    before = counts(populated)
    results: list[RetentionResult] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(run(populated.engine, policy, batch_rows=5))
        except Exception as error:  # noqa: BLE001 - asserted on below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {table: sum(result.count(table) for result in results) for table in wanted} == wanted
    after = counts(populated)
    assert {name: before[name] - after[name] for name in wanted} == wanted
    assert populated.value("SELECT count(*) FROM retention_runs WHERE status = 'completed'") == 3


_PROGRAM = """
import sys
from resources.postgres.connection import engine_for
from resources.postgres.retention import run
run(engine_for(sys.argv[1]), "scrape_jobs", batch_rows=10, pace=1.0, on_batch=lambda n: print(n, flush=True))
"""


def test_a_killed_run_is_closed_and_the_next_one_finishes_exactly(populated: Database) -> None:
    wanted = sum(row["rows"] for row in _seen(populated, "scrape_jobs"))
    with subprocess.Popen([sys.executable, "-c", _PROGRAM, populated.url], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    _wait_until(lambda: populated.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0)
    (killed,) = populated.rows("SELECT * FROM retention_runs")
    assert killed["status"] == "running"
    assert 0 < int(str(killed["rows_removed"])) < wanted
    result = run(populated.engine, "scrape_jobs")
    first, second = populated.rows("SELECT * FROM retention_runs ORDER BY id")
    assert (first["status"], second["status"]) == ("failed", "completed")
    assert "ended before the run was through" in str(first["error_message"])
    assert int(str(first["rows_removed"])) + result.rows_removed == wanted
    assert populated.value("SELECT count(*) FROM scrape_jobs WHERE job_id LIKE '%old%'") == 0
    assert populated.value("""SELECT sum(total_pages) >= 360 FROM daily_job_stats
                              WHERE day > current_date - 110""")


def _wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_run_that_is_alive_is_not_taken_for_crashed(populated: Database) -> None:
    inner: list[RetentionResult] = []

    def other(_: int) -> None:
        if not inner:
            inner.append(run(populated.engine, "scrape_jobs", dry_run=True))
            assert populated.value("SELECT count(*) FROM retention_runs WHERE status = 'running'") == 1

    run(populated.engine, "scrape_jobs", batch_rows=50, on_batch=other)
    assert populated.value("SELECT count(*) FROM retention_runs WHERE status = 'completed'") == 2


def test_a_run_waits_out_a_lock_with_growing_rests_and_gives_up_in_the_end(populated: Database) -> None:
    rests: list[float] = []
    with populated.engine.begin() as other:
        other.execute(text("SELECT 1 FROM customers FOR NO KEY UPDATE"))
        with pytest.raises(RetentionFailed, match=r"retention of message_queue stopped: .*lock timeout"):
            run(populated.engine, "message_queue", lock_timeout_ms=50, sleep=rests.append)
    assert len(rests) == 5
    assert max(rests) <= 5
    (record,) = populated.rows("SELECT status, error_message, rows_removed FROM retention_runs")
    assert record["status"] == "failed"
    assert "lock timeout" in str(record["error_message"])
    assert run(populated.engine, "message_queue").rows_removed == 28


def test_every_run_leaves_its_row(populated: Database) -> None:
    for policy in REMOVABLE:
        for dry_run in (True, False):
            run(populated.engine, policy, dry_run=dry_run, run_id="dagster-1")
    rows = populated.rows("SELECT * FROM retention_runs ORDER BY id")
    assert [(r["policy"], r["dry_run"]) for r in rows] == [(p, dry) for p in REMOVABLE for dry in (True, False)]
    for dry, real in zip(rows[::2], rows[1::2], strict=True):
        assert (dry["status"], real["status"], real["run_id"]) == ("completed", "completed", "dagster-1")
        assert dry["rows_removed"] == real["rows_removed"]
        assert dry["details"] == real["details"]
        assert real["completed_at"] >= real["started_at"]  # type: ignore[operator]
    assert rows[1]["expired_unprocessed"] == 22
    assert "acme" not in str([row["details"] for row in rows])


def test_a_job_larger_than_a_batch_goes_in_several(database: Database) -> None:
    customer = make_customer(database, "acme")
    make_job(database, customer, "large", age_days=100, results=1_000, frontier=300)
    make_job(database, customer, "small", age_days=99, results=10)
    seen: list[int] = []
    result = run(database.engine, "scrape_jobs", batch_rows=100, on_batch=seen.append)
    assert [n - m for m, n in zip([0, *seen], seen, strict=False)][:10] == [100] * 10
    assert (result.count("scrape_jobs"), result.count("scrape_job_results")) == (2, 1_010)
    assert (result.count("crawl_frontier"), result.count("scrape_job_stats")) == (300, 2)
