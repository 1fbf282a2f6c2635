"""What goes wrong is one alert for each episode, and is over when it is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from sqlalchemy import create_engine, text

from omniops_pipelines.definitions import defs
from resources.postgres.connection import driver_url
from resources.postgres.retention import run as run_retention
from sensors import SENSORS
from tests.integration.sensors.conftest import Daemon, execute, queue

if TYPE_CHECKING:
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

SITE = {"omniops/job_id": "j1", "omniops/customer": "acme", "omniops/domain": "shop.example"}
REMOVES = {"ops": {"remove_expired_messages": {"config": {"dry_run": False}}}}
Status = dg.DagsterRunStatus


def alerts(database: Database, alert: str | None = None) -> list[dict[str, Any]]:
    return database.rows(
        "SELECT alert, episode, severity, occurrences, run_id, message, customer_id, closed_at IS NULL AS open "
        "FROM alert_history WHERE alert = coalesce(:alert, alert) ORDER BY id", alert=alert,
    )  # fmt: skip


def open_alerts(database: Database) -> list[tuple[str, str]]:
    return [(row["alert"], row["episode"]) for row in alerts(database) if row["open"]]


def as_owner(database: Database, sql: str) -> None:
    owner = create_engine(driver_url(database.owner_url))
    with owner.begin() as connection:
        connection.execute(text(sql))
    owner.dispose()


def report_failure(daemon: Daemon, run_id: str) -> None:
    """The failure sensor, given one run, as the daemon gives it."""
    sensor = defs.get_repository_def().get_sensor_def("run_failure_alerts")
    run = daemon.instance.get_run_by_id(run_id)
    assert run is not None
    event = dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_FAILURE.value, job_name=run.job_name)
    context = dg.build_run_status_sensor_context(
        "run_failure_alerts", event, daemon.instance, run,
        resources={"postgres": defs.resources["postgres"]},  # type: ignore[index]
    ).for_run_failure()  # fmt: skip
    with context:
        sensor(context)


# --- runs -----------------------------------------------------------------------------------------------------


def test_a_failed_run_is_an_alert_its_next_failures_are_counted_and_its_next_success_ends_it(
    database: Database, daemon: Daemon
) -> None:
    daemon.tick("run_failure_alerts")  # the first tick of such a sensor begins at now
    daemon.tick("run_recovery_sensor")
    first = daemon.make_run("crawl", Status.FAILURE, tags=SITE)
    daemon.tick("run_failure_alerts")
    (alert,) = alerts(database)
    assert (alert["alert"], alert["episode"], alert["run_id"]) == ("crawl_failed", "acme/shop.example", first)
    assert (alert["severity"], alert["open"], alert["occurrences"]) == ("warning", True, 1)
    assert "the process is gone" in alert["message"]
    # Looked at again by the other sensor, it is the same occurrence.
    daemon.tick("run_recovery_sensor")
    daemon.tick("run_recovery_sensor")
    assert alerts(database)[0]["occurrences"] == 1
    daemon.make_run("crawl", Status.FAILURE, tags=SITE)
    daemon.tick("run_failure_alerts")
    assert [row["occurrences"] for row in alerts(database)] == [2]
    daemon.make_run("crawl", Status.SUCCESS, tags={**SITE, "omniops/domain": "other.example"})
    daemon.tick("run_recovery_sensor")
    assert open_alerts(database) == [("crawl_failed", "acme/shop.example")]
    daemon.make_run("crawl", Status.SUCCESS, tags=SITE)
    daemon.tick("run_recovery_sensor")
    assert open_alerts(database) == []
    daemon.tick("run_recovery_sensor")
    assert len(alerts(database)) == 1


def test_a_failure_that_the_sensor_could_not_report_is_reported_later(database: Database, daemon: Daemon) -> None:
    daemon.tick("run_recovery_sensor")
    run_id = daemon.make_run("crawl", Status.FAILURE, tags=SITE)
    as_owner(database, "REVOKE INSERT ON alert_history FROM service_role")
    with pytest.raises(Exception, match="permission denied"):
        report_failure(daemon, run_id)
    with pytest.raises(Exception, match="permission denied"):
        daemon.tick("run_recovery_sensor")
    assert alerts(database) == []
    as_owner(database, "GRANT INSERT ON alert_history TO service_role")
    daemon.tick("run_recovery_sensor")
    assert [row["run_id"] for row in alerts(database)] == [run_id]


def test_what_failed_before_the_platform_was_looked_at_is_no_news(database: Database, daemon: Daemon) -> None:
    daemon.make_run("crawl", Status.FAILURE, tags=SITE)
    execute(database, "UPDATE dagster.runs SET update_timestamp = update_timestamp - interval '1 hour'")
    daemon.tick("run_recovery_sensor")
    assert alerts(database) == []


def test_a_failure_that_is_told_after_its_recovery_does_not_stay_open(database: Database, daemon: Daemon) -> None:
    failed = daemon.make_run("crawl", Status.FAILURE, tags=SITE)
    daemon.make_run("crawl", Status.SUCCESS, tags=SITE)
    execute(database, "UPDATE dagster.runs SET end_time = end_time - 60 WHERE run_id = :r", r=failed)
    report_failure(daemon, failed)
    assert [row["open"] for row in alerts(database)] == [False]


def test_a_run_of_the_command_line_and_one_that_is_tried_again_are_no_alerts(
    database: Database, daemon: Daemon
) -> None:
    daemon.tick("run_recovery_sensor")
    daemon.make_run("crawl", Status.FAILURE, tags=SITE, by_daemon=False)
    retried = daemon.make_run("crawl", Status.FAILURE, tags=SITE)
    daemon.instance.add_run_tags(retried, {"dagster/will_retry": "true"})
    report_failure(daemon, retried)
    daemon.tick("run_recovery_sensor")
    assert alerts(database) == []


def test_a_site_that_is_down_is_its_owners_matter(database: Database, daemon: Daemon) -> None:
    queue(database, "j1")
    run_id = daemon.make_run("crawl", Status.FAILURE, tags=SITE)
    execute(database, "UPDATE scrape_jobs SET status = 'failed', finish_reason = 'site_unreachable', run_id = :r",
            r=run_id)  # fmt: skip
    report_failure(daemon, run_id)
    (alert,) = alerts(database)
    assert alert["severity"] == "info"
    assert alert["customer_id"] == database.value("SELECT id FROM customers WHERE slug = 'acme'")


def test_a_refused_run_says_why_in_the_words_of_its_op(database: Database, daemon: Daemon) -> None:
    config = {"ops": {"plan_crawl": {"config": {"urls": ["ftp://shop.example/"]}}},
              "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}  # fmt: skip
    result = defs.resolve_job_def("crawl").execute_in_process(
        run_config=config, instance=daemon.instance, raise_on_error=False
    )
    report_failure(daemon, result.run_id)
    (alert,) = alerts(database)
    assert (alert["alert"], alert["episode"], alert["severity"]) == ("run_failed", "crawl", "info")
    assert "ftp" in alert["message"]
    assert "http" in alert["message"]


# --- cleanups -------------------------------------------------------------------------------------------------


def a_retention_run(
    database: Database, status: str, hours_ago: float, policy: str = "message_queue", **k: Any
) -> None:
    execute(
        database,
        "INSERT INTO retention_runs (policy, dry_run, status, started_at, completed_at, error_message, run_id) "
        "VALUES (:policy, :dry, :status, :at, :at, :why, :run_id)",
        policy=policy, dry=k.get("dry_run", False), status=status, at=datetime.now(UTC) - timedelta(hours=hours_ago),
        why="lock timeout" if status == "failed" else None, run_id=k.get("run_id"),
    )  # fmt: skip


def test_a_cleanup_that_failed_is_an_alert_until_the_next_one_is_completed(
    database: Database, daemon: Daemon
) -> None:
    a_retention_run(database, "completed", 20)
    a_retention_run(database, "failed", 2)
    for _ in range(3):
        daemon.tick("cleanup_failure_sensor")
    (alert,) = alerts(database)
    assert (alert["alert"], alert["episode"], alert["severity"]) == ("cleanup_failed", "message_queue", "critical")
    assert (alert["occurrences"], alert["open"]) == (1, True)
    assert "lock timeout" in alert["message"]
    a_retention_run(database, "failed", 1)
    daemon.tick("cleanup_failure_sensor")
    assert [row["occurrences"] for row in alerts(database)] == [2]
    # A preview proves nothing; the real thing does, whoever starts it.
    run_retention(database.engine, "message_queue", None, dry_run=True)
    daemon.tick("cleanup_failure_sensor")
    assert open_alerts(database) == [("cleanup_failed", "message_queue")]
    run_retention(database.engine, "message_queue", None, dry_run=False)
    daemon.tick("cleanup_failure_sensor")
    assert open_alerts(database) == []


def test_a_dagster_run_and_its_row_are_one_failure(database: Database, daemon: Daemon) -> None:
    run_id = daemon.make_run("cleanup_message_queue", Status.FAILURE, config=REMOVES)
    report_failure(daemon, run_id)
    a_retention_run(database, "failed", 0.01, run_id=run_id)
    daemon.tick("cleanup_failure_sensor")
    (alert,) = alerts(database)
    assert (alert["alert"], alert["occurrences"]) == ("cleanup_failed", 1)


def test_a_cleanup_that_did_not_run_is_an_alert_and_a_fresh_installation_is_none(
    database: Database, daemon: Daemon
) -> None:
    daemon.tick("cleanup_failure_sensor")
    assert alerts(database) == []
    # A day and a half later only the daily one is late.
    execute(database, "UPDATE omniops_meta.watermarks SET at = at - interval '36 hours'")
    a_retention_run(database, "completed", 1, dry_run=True)
    daemon.tick("cleanup_failure_sensor")
    assert open_alerts(database) == [("cleanup_did_not_run", "message_queue")]
    execute(database, "UPDATE omniops_meta.watermarks SET at = at - interval '10 days'")
    daemon.tick("cleanup_failure_sensor")
    assert {episode for _, episode in open_alerts(database)} == {
        "message_queue", "scrape_jobs", "conversations", "analytics",
    }  # fmt: skip
    for policy in ("message_queue", "scrape_jobs", "conversations", "analytics"):
        run_retention(database.engine, policy, None, dry_run=False)
    daemon.tick("cleanup_failure_sensor")
    assert open_alerts(database) == []


# --- capacity -------------------------------------------------------------------------------------------------


def test_storage_over_its_budget_is_one_alert_and_is_over_when_there_is_room(
    database: Database, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = database.value("SELECT pg_database_size(current_database())")
    assert isinstance(size, int)
    for share in (0.5, 0.9, 0.85, 0.9):
        monkeypatch.setenv("OMNIOPS_STORAGE_BUDGET_BYTES", str(int(size / share)))
        daemon.tick("capacity_sensor")
    (alert,) = alerts(database, "storage_over_budget")
    assert (alert["severity"], alert["occurrences"], alert["open"]) == ("warning", 3, True)
    monkeypatch.setenv("OMNIOPS_STORAGE_BUDGET_BYTES", str(int(size / 0.77)))
    daemon.tick("capacity_sensor")
    assert ("storage_over_budget", "database") in open_alerts(database)
    monkeypatch.setenv("OMNIOPS_STORAGE_BUDGET_BYTES", str(size * 10))
    daemon.tick("capacity_sensor")
    assert open_alerts(database) == []


def test_connections_that_run_out_are_an_alert(database: Database, daemon: Daemon) -> None:
    import psycopg

    from sensors.capacity import read_postgres

    with database.engine.connect() as connection:
        before = read_postgres(connection, 10**12)[1]
    held = [psycopg.connect(database.url) for _ in range(5)]
    with database.engine.connect() as connection:
        gauge = read_postgres(connection, 10**12)[1]
        allowed = connection.scalar(text("SELECT current_setting('max_connections')::integer"))
    for one in held:
        one.close()
    assert gauge.used - before.used == 5
    assert 0 < gauge.limit < allowed
    daemon.tick("capacity_sensor")
    assert open_alerts(database) == []


def test_a_pool_that_is_used_up_is_an_alert(database: Database, daemon: Daemon) -> None:
    from sensors.capacity import judge, read_pool

    idle = read_pool(database.engine)
    assert idle is not None
    held = [database.engine.connect() for _ in range(13)]
    try:
        busy = read_pool(database.engine)
        assert busy is not None
        assert (idle.used, busy.used, busy.limit) == (0, 13, 15)
        assert getattr(judge(busy), "alert", None) == "pool_exhausted"
        daemon.tick("capacity_sensor")
        assert open_alerts(database) == [("pool_exhausted", "omniops")]
    finally:
        for connection in held:
            connection.close()
    daemon.tick("capacity_sensor")
    assert open_alerts(database) == []


def test_redis_is_read_and_its_absence_is_an_alert_the_second_time(
    database: Database, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sensors.capacity import read_redis, redis_gauge

    info = read_redis(database.redis_url)
    assert info is not None
    assert 0 < (redis_gauge(info).share or 0) < 1
    daemon.tick("capacity_sensor")
    monkeypatch.setenv("OMNIOPS_REDIS_URL", "redis://127.0.0.1:1/0")
    daemon.tick("capacity_sensor")
    assert open_alerts(database) == []
    daemon.tick("capacity_sensor")
    assert open_alerts(database) == [("redis_away", "redis")]
    monkeypatch.setenv("OMNIOPS_REDIS_URL", database.redis_url)
    daemon.tick("capacity_sensor")
    assert open_alerts(database) == []


def test_messages_that_do_not_get_through_are_an_alert_of_their_customer(database: Database, daemon: Daemon) -> None:
    queue(database, "makes the customers", customer="acme")
    queue(database, "and another", customer="globex")
    execute(
        database,
        "INSERT INTO message_queue (customer_id, session_id, message_key, message_data, status, retry_count) "
        "SELECT c.id, 's' || n, 'k' || n, '{}', CASE WHEN n = 1 THEN 'failed' ELSE 'pending' END, n "
        "FROM customers AS c, generate_series(0, 4) AS n WHERE c.slug = 'acme'",
    )
    execute(database, "INSERT INTO message_queue (customer_id, session_id, message_key, message_data) "
                      "SELECT id, 's', 'k', '{}' FROM customers WHERE slug = 'globex'")  # fmt: skip
    daemon.tick("capacity_sensor")
    (alert,) = alerts(database)
    assert (alert["alert"], alert["episode"], alert["severity"]) == ("queue_blocked", "acme", "critical")
    assert "2 sessions wait" in alert["message"]
    assert "1 messages were given up" in alert["message"]
    assert alert["customer_id"] is None
    execute(database, "DELETE FROM message_queue")
    daemon.tick("capacity_sensor")
    assert open_alerts(database) == []


def test_a_database_that_cannot_be_read_closes_no_alert(
    database: Database, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIOPS_STORAGE_BUDGET_BYTES", "1000")
    daemon.tick("capacity_sensor")
    assert open_alerts(database) == [("storage_over_budget", "database")]
    monkeypatch.setenv("OMNIOPS_STORAGE_BUDGET_BYTES", str(10**15))
    as_owner(database, "REVOKE SELECT ON message_queue FROM service_role")
    with pytest.raises(Exception, match="permission denied"):
        daemon.tick("capacity_sensor")
    assert open_alerts(database) == [("storage_over_budget", "database")]


# --- pages ----------------------------------------------------------------------------------------------------


def test_a_site_that_lost_most_of_its_pages_in_one_crawl_is_an_alert_until_they_are_back(
    database: Database, daemon: Daemon, site: Site
) -> None:
    def crawl(job_id: str) -> None:
        result = defs.resolve_job_def("crawl").execute_in_process(
            run_config={
                "ops": {"plan_crawl": {"config": {
                    "urls": [site.url, *(f"{site.url}p{n}" for n in range(1, 12))], "job_id": job_id,
                    "customer": "acme", "allow_private": True,
                }}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            instance=daemon.instance,
        )  # fmt: skip
        assert result.success

    daemon.tick("page_loss_sensor")
    site.chain(12)
    crawl("whole")
    daemon.tick("page_loss_sensor")
    assert alerts(database) == []
    for n in range(1, 5):
        del site.pages[f"/p{n}"]
    crawl("some gone")
    daemon.tick("page_loss_sensor")
    assert alerts(database) == []
    for n in range(5, 12):
        del site.pages[f"/p{n}"]
    crawl("most gone")
    daemon.tick("page_loss_sensor")
    daemon.tick("page_loss_sensor")
    (alert,) = alerts(database)
    assert (alert["alert"], alert["episode"]) == ("site_lost_pages", f"acme/127.0.0.1:{site.port}")
    assert (alert["occurrences"], alert["severity"]) == (1, "warning")
    assert "lost 7 of 8 pages" in alert["message"]
    # The customer's own site: the customer may read of it.
    assert alert["customer_id"] == database.value("SELECT id FROM customers")
    site.chain(12)
    crawl("back")
    daemon.tick("page_loss_sensor")
    assert open_alerts(database) == []


# --- delivery and definitions -----------------------------------------------------------------------------------


def test_what_a_sensor_reports_arrives_at_the_receiver_by_the_next_delivery(
    database: Database, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.receiver import SECRET, TOKEN, serve_receiver

    with serve_receiver() as receiver:
        monkeypatch.setenv("OMNIOPS_ALERT_WEBHOOKS", f"{receiver.url},mailto:{TOKEN}")
        monkeypatch.setenv("OMNIOPS_ALERT_WEBHOOK_SECRET", str(SECRET.reveal()))
        monkeypatch.setenv("OMNIOPS_ALERT_ALLOW_PRIVATE", "1")
        monkeypatch.setenv("OMNIOPS_ALERT_SETTLE_SECONDS", "0")
        monkeypatch.setenv("OMNIOPS_STORAGE_BUDGET_BYTES", "1000")
        daemon.tick("capacity_sensor")
        daemon.tick("capacity_sensor")
        said = daemon.tick("alert_delivery_sensor").skip_message
        assert "1 delivered" in said
        assert "url 2 of OMNIOPS_ALERT_WEBHOOKS" in said
        assert TOKEN not in said
        monkeypatch.setenv("OMNIOPS_STORAGE_BUDGET_BYTES", str(10**15))
        daemon.tick("capacity_sensor")
        daemon.tick("alert_delivery_sensor")
        assert receiver.events == [("opened", "database"), ("closed", "database")]
        assert all(message.signed for message in receiver.messages)


def test_every_sensor_has_its_names_status_and_interval() -> None:
    found = {sensor.name: (sensor.default_status, sensor.minimum_interval_seconds) for sensor in SENSORS}
    assert found == {
        "queued_jobs_sensor": (dg.DefaultSensorStatus.RUNNING, 10),
        "stalled_jobs_sensor": (dg.DefaultSensorStatus.RUNNING, 30),
        "dead_runs_sensor": (dg.DefaultSensorStatus.RUNNING, 30),
        "run_failure_alerts": (dg.DefaultSensorStatus.RUNNING, 15),
        "run_recovery_sensor": (dg.DefaultSensorStatus.RUNNING, 60),
        "cleanup_failure_sensor": (dg.DefaultSensorStatus.RUNNING, 300),
        "capacity_sensor": (dg.DefaultSensorStatus.RUNNING, 60),
        "page_loss_sensor": (dg.DefaultSensorStatus.RUNNING, 60),
        "alert_delivery_sensor": (dg.DefaultSensorStatus.RUNNING, 15),
    }
    assert {sensor.name for sensor in defs.sensors or ()} >= set(found)
    assert all(sensor.description for sensor in SENSORS)
