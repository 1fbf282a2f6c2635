"""Messages arrive at least once, with one id each, whatever receivers, networks and processes do."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from resources.alerts import Flushed, flush
from resources.alerts.outbox import MAX_ATTEMPTS
from resources.alerts.trial import send_trial
from resources.settings import PROJECT_ROOT
from tests.integration.alerts.conftest import alerts_in, an_alert, settings_for
from tests.support.receiver import SECRET, TOKEN, Receiver

if TYPE_CHECKING:
    from pathlib import Path

    from resources.alerts import AlertSettings
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

DELIVERIES = "SELECT * FROM omniops_meta.alert_deliveries ORDER BY id"
HOOKS = f"https://hooks.slack.example/services/{TOKEN}"


def make_due(database: Database) -> None:
    """Let the time pass that a message waits."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE omniops_meta.alert_deliveries SET next_attempt_at = now()"))


def states(database: Database) -> list[str]:
    return [
        "delivered" if d["delivered_at"] else "given up" if d["gave_up_at"] else "waits"
        for d in database.rows(DELIVERIES)
    ]


def test_a_message_arrives_once_and_its_signature_is_right(database: Database, receiver: Receiver) -> None:
    settings = settings_for(receiver.url)
    alerts_in(database, settings).open(an_alert(run_id="r-1"))
    assert flush(database.engine, settings) == Flushed(delivered=1)
    assert flush(database.engine, settings) == Flushed()
    (message,) = receiver.messages
    assert message.signed
    assert message.json["alert"]["run_url"] == "http://ui.example/runs/r-1"
    assert message.json["delivery_id"] == message.delivery
    assert states(database) == ["delivered"]


def test_beginning_and_end_of_an_episode_arrive_in_this_order(database: Database, receiver: Receiver) -> None:
    settings = settings_for(receiver.url)
    alerts = alerts_in(database, settings)
    alerts.open(an_alert())
    receiver.answer = lambda n: (500, {}) if n == 0 else (200, {})
    flush(database.engine, settings)
    alerts.close("storage_over_budget", "database")
    # The end is due and the beginning is not: it waits for it.
    assert flush(database.engine, settings) == Flushed()
    make_due(database)
    assert flush(database.engine, settings) == Flushed(delivered=2)
    assert receiver.events == [("opened", "database"), ("closed", "database")]
    first, second, third = (message.delivery for message in receiver.messages)
    assert first == second != third


def test_a_receiver_that_fails_is_tried_again_later_and_not_before_it_asked_for(
    database: Database, receiver: Receiver
) -> None:
    settings = settings_for(receiver.url)
    alerts_in(database, settings).open(an_alert())
    receiver.answer = lambda n: [(500, {}), (503, {"Retry-After": "1200"}), (200, {})][n]
    assert flush(database.engine, settings) == Flushed(failed=1)
    assert flush(database.engine, settings) == Flushed()
    make_due(database)
    assert flush(database.engine, settings) == Flushed(failed=1)
    (waiting,) = database.rows(
        "SELECT attempts, last_error, extract(epoch FROM next_attempt_at - now()) AS seconds "
        "FROM omniops_meta.alert_deliveries"
    )
    assert (waiting["attempts"], waiting["last_error"]) == (2, "answered 503")
    assert 1_100 < float(waiting["seconds"]) <= 1_200  # type: ignore[arg-type]
    make_due(database)
    assert flush(database.engine, settings) == Flushed(delivered=1)
    assert len({message.delivery for message in receiver.messages}) == 1


def test_a_message_is_given_up_after_its_last_try_and_that_is_said(
    database: Database, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(receiver.url)
    alerts_in(database, settings).open(an_alert())
    receiver.answer = lambda _: (500, {})
    for _ in range(MAX_ATTEMPTS + 2):
        make_due(database)
        flush(database.engine, settings)
    assert len(receiver.messages) == MAX_ATTEMPTS
    assert states(database) == ["given up"]
    assert [record.levelname for record in caplog.records if "given up" in record.message] == ["ERROR"]
    # Nobody heard of its beginning, so nobody hears of its end.
    alerts_in(database, settings).close("storage_over_budget", "database")
    assert states(database) == ["given up"]


def test_a_receiver_that_is_gone_for_good_is_asked_once(database: Database, receiver: Receiver) -> None:
    settings = settings_for(receiver.url)
    alerts_in(database, settings).open(an_alert())
    receiver.answer = lambda _: (410, {})
    assert flush(database.engine, settings) == Flushed(failed=1, gave_up=1)


def test_redirects_are_not_followed(database: Database, receiver: Receiver, second: Receiver) -> None:
    settings = settings_for(receiver.url)
    alerts_in(database, settings).open(an_alert())
    receiver.answer = lambda _: (307, {"Location": second.url})
    assert flush(database.engine, settings) == Flushed(failed=1)
    assert second.messages == []
    assert "redirects are not followed" in str(database.value("SELECT last_error FROM omniops_meta.alert_deliveries"))


def test_a_receiver_that_hangs_holds_up_neither_the_others_nor_the_tick(
    database: Database, receiver: Receiver, second: Receiver
) -> None:
    settings = settings_for(receiver.url, second.url)
    alerts = alerts_in(database, settings)
    for n in range(3):
        alerts.open(an_alert(episode=f"e{n}"))
    receiver.hang_seconds = 30
    began = time.monotonic()
    assert flush(database.engine, settings, deadline_seconds=2, attempt_seconds=1) == Flushed(delivered=3, failed=1)
    assert time.monotonic() - began < 15
    assert len(second.messages) == 3
    assert len(receiver.messages) == 1
    assert "no answer within 1 s" in str(database.rows(DELIVERIES)[0]["last_error"])


def test_private_addresses_are_refused_unless_that_is_allowed(database: Database, receiver: Receiver) -> None:
    by_name = receiver.url.replace("127.0.0.1", "localhost")
    for url in (receiver.url, by_name, receiver.url.replace("127.0.0.1", "2130706433")):
        settings = settings_for(url, allow_private=False)
        alerts_in(database, settings).open(an_alert(episode=url))
        assert flush(database.engine, settings).failed == 1
    assert receiver.messages == []
    errors = [str(d["last_error"]) for d in database.rows(DELIVERIES)]
    # The last one is not even taken for a host.
    assert all("OMNIOPS_ALERT_ALLOW_PRIVATE" in error for error in errors[:2]), errors
    metadata = settings_for("http://169.254.169.254/latest/meta-data", allow_private=True)
    alerts_in(database, metadata).open(an_alert(episode="metadata"))
    assert flush(database.engine, metadata).failed == 1


def test_no_url_of_a_receiver_is_in_rows_logs_or_errors(
    database: Database, receiver: Receiver, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    unusual = [
        receiver.url,
        f"http://user:{TOKEN}@127.0.0.1:1/{TOKEN}",
        f"http://nowhere.invalid/{TOKEN}",
        f"https://127.0.0.1:{receiver.url.split(':')[2].split('/')[0]}/{TOKEN}",
        f"http://127.0.0.1:1/{TOKEN}?{TOKEN}#{TOKEN}",
        f"http://xn--/{TOKEN}",
        f"http://2130706433/{TOKEN}",
        f"http://{'a' * 300}.example/{TOKEN}",
    ]
    settings = settings_for(*unusual)
    receiver.answer = lambda _: (400, {"Location": receiver.url})
    alerts_in(database, settings).open(an_alert())
    done = flush(database.engine, settings)
    assert done.failed == len(settings.endpoints) == len(unusual)
    everything = [str(database.rows(DELIVERIES)), str(database.rows("SELECT * FROM alert_history")), caplog.text]
    everything += [str(trial) for trial in send_trial(settings)]
    everything += list(capfd.readouterr())
    for words in everything:
        assert TOKEN not in words
        assert str(SECRET.reveal()) not in words


def test_two_programs_that_send_at_once_send_each_message_once(database: Database, receiver: Receiver) -> None:
    settings = settings_for(receiver.url)
    alerts = alerts_in(database, settings)
    for n in range(25):
        alerts.open(an_alert(episode=f"e{n}"))
    totals: list[Flushed] = []
    threads = [threading.Thread(target=lambda: totals.append(flush(database.engine, settings))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(total.delivered for total in totals) == 25
    assert len({message.delivery for message in receiver.messages}) == len(receiver.messages) == 25


def test_a_message_to_a_receiver_that_is_not_configured_any_more_waits_for_a_day(database: Database) -> None:
    alerts_in(database, settings_for(HOOKS)).open(an_alert())
    assert flush(database.engine, settings_for()) == Flushed()
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE omniops_meta.alert_deliveries SET created_at = now() - interval '25 hours'"))
    assert flush(database.engine, settings_for()) == Flushed(gave_up=1)
    assert "not configured any more" in str(database.value("SELECT last_error FROM omniops_meta.alert_deliveries"))


PROGRAM = """
import os, sys
from resources.alerts import Alert, Alerts, flush
from resources.alerts import outbox
from resources.postgres.connection import engine_for
from tests.integration.alerts.conftest import an_alert, settings_for

engine, settings = engine_for(os.environ["DATABASE"]), settings_for(os.environ["RECEIVER"])
moment = sys.argv[1]
if moment == "before sending":
    Alerts(engine, settings).open(an_alert())
    print("ready", flush=True)
    sys.stdin.read()
if moment == "after sending":
    # Killed when the receiver has it and the database does not know.
    outbox._record = lambda *_: (print("ready", flush=True), sys.stdin.read())
    Alerts(engine, settings).open(an_alert())
    flush(engine, settings)
"""


@pytest.mark.parametrize(("moment", "arrivals"), [("before sending", 1), ("after sending", 2)])
def test_a_killed_program_leaves_its_message_to_the_next_one(
    database: Database, receiver: Receiver, moment: str, arrivals: int
) -> None:
    environment = {**os.environ, "DATABASE": database.url, "RECEIVER": receiver.url}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, moment],
        cwd=PROJECT_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    settings: AlertSettings = settings_for(receiver.url)
    if moment == "after sending":
        # It is claimed until its lease runs out.
        assert flush(database.engine, settings) == Flushed()
    make_due(database)
    assert flush(database.engine, settings) == Flushed(delivered=1)
    assert len(receiver.messages) == arrivals
    assert len({message.delivery for message in receiver.messages}) == 1
    assert states(database) == ["delivered"]


def test_a_message_whose_sender_dies_every_time_is_given_up_too(database: Database, receiver: Receiver) -> None:
    settings = settings_for(receiver.url)
    alerts_in(database, settings).open(an_alert())
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE omniops_meta.alert_deliveries SET attempts = :n"), {"n": MAX_ATTEMPTS})
    assert flush(database.engine, settings) == Flushed(gave_up=1)
    assert receiver.messages == []


def test_the_command_tells_of_each_receiver_whether_it_was_reached(
    database: Database, receiver: Receiver, tmp_path: Path
) -> None:
    environment = {
        **database.environment(tmp_path / "home"),
        "OMNIOPS_ALERT_WEBHOOKS": f"{receiver.url} http://127.0.0.1:1/{TOKEN} mailto:{TOKEN}",
        "OMNIOPS_ALERT_WEBHOOK_SECRET": str(SECRET.reveal()),
        "OMNIOPS_ALERT_ALLOW_PRIVATE": "1",
    }

    def omniops(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "omniops_pipelines", *arguments],
            cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    tested = omniops("alerts", "test")
    assert tested.returncode == 1
    assert len(receiver.messages) == 1
    assert receiver.messages[0].signed
    assert "url 3 of OMNIOPS_ALERT_WEBHOOKS" in tested.stdout
    assert "no connection" in tested.stdout
    alerts_in(database).open(an_alert(run_id="r-9"))
    listed = omniops("alerts", "list")
    assert "storage_over_budget" in listed.stdout
    assert "http://127.0.0.1:3000/runs/r-9" in listed.stdout
    settings = omniops("env")
    assert "OMNIOPS_UI_URL=http://127.0.0.1:3000" in settings.stdout
    for words in (tested.stdout, tested.stderr, listed.stdout, settings.stdout):
        assert TOKEN not in words
        assert str(SECRET.reveal()) not in words
