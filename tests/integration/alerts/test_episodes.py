"""An episode is one row, whoever reports it, however often, from however many programs at once."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from resources.postgres.tenancy import service_connection, tenant_connection
from tests.integration.alerts.conftest import alerts_in, an_alert, settings_for
from tests.support.rows import make_customer

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

ELSEWHERE = "https://hooks.example/one"
ROWS = "SELECT * FROM alert_history ORDER BY id"
DELIVERIES = "SELECT * FROM omniops_meta.alert_deliveries ORDER BY id"


def test_what_is_reported_again_is_counted_and_tells_nobody(database: Database) -> None:
    alerts = alerts_in(database, settings_for(ELSEWHERE))
    outcomes = [alerts.open(an_alert(message=f"report {n}", details={"n": n})).outcome for n in range(3)]
    assert outcomes == ["opened", "continued", "continued"]
    (row,) = database.rows(ROWS)
    assert (row["occurrences"], row["message"], row["closed_at"]) == (3, "report 2", None)
    assert row["last_seen_at"] > row["opened_at"]  # type: ignore[operator]
    assert row["details"] == {"n": 2, "seen": []}
    assert [(d["event"], d["attempts"]) for d in database.rows(DELIVERIES)] == [("opened", 0)]


def test_an_episode_becomes_worse_and_never_less_bad(database: Database) -> None:
    alerts = alerts_in(database)
    seen = []
    for severity in ("info", "warning", "critical", "info", "warning"):
        alerts.open(an_alert(severity=severity))
        seen.append(database.value("SELECT severity FROM alert_history"))
    assert seen == ["info", "warning", "critical", "critical", "critical"]


def test_two_episodes_and_two_alerts_are_rows_of_their_own(database: Database) -> None:
    alerts = alerts_in(database)
    for alert in (an_alert(), an_alert(episode="other"), an_alert(alert="redis_away")):
        assert alerts.open(alert).outcome == "opened"
    assert set(alerts.open_episodes("storage_over_budget")) == {
        ("storage_over_budget", "database"), ("storage_over_budget", "other"),
    }  # fmt: skip


def test_what_is_over_is_told_to_those_who_heard_of_its_beginning(database: Database) -> None:
    alerts_in(database, settings_for(ELSEWHERE)).open(an_alert())
    # Another receiver has been configured meanwhile: it never heard of this alert.
    alerts = alerts_in(database, settings_for(ELSEWHERE, "https://hooks.example/two"))
    assert alerts.close("storage_over_budget", "database") is not None
    assert alerts.close("storage_over_budget", "database") is None
    told = database.rows(DELIVERIES)
    assert [d["event"] for d in told] == ["opened", "closed"]
    assert len({d["endpoint"] for d in told}) == 1


def test_a_new_episode_begins_where_the_last_one_has_settled(database: Database) -> None:
    alerts = alerts_in(database, settings_for(ELSEWHERE, settle_seconds=0))
    first = alerts.open(an_alert())
    alerts.close("storage_over_budget", "database")
    again = alerts.open(an_alert())
    assert (again.outcome, again.id != first.id) == ("opened", True)
    assert [d["event"] for d in database.rows(DELIVERIES)] == ["opened", "closed", "opened"]


def test_a_flapping_alert_is_one_episode_and_one_message(database: Database) -> None:
    alerts = alerts_in(database, settings_for(ELSEWHERE, settle_seconds=300))
    ids = set()
    for _ in range(5):
        ids.add(alerts.open(an_alert()).id)
        alerts.close("storage_over_budget", "database")
    assert len(ids) == 1
    assert database.value("SELECT occurrences FROM alert_history") == 5
    told = database.rows(
        "SELECT event, next_attempt_at > now() AS later FROM omniops_meta.alert_deliveries ORDER BY id"
    )
    # The end waits until it has lasted.
    assert told == [{"event": "opened", "later": False}, {"event": "closed", "later": True}]
    assert alerts.open(an_alert()).outcome == "reopened"
    assert [d["event"] for d in database.rows(DELIVERIES)] == ["opened"]


def test_an_end_that_was_told_already_is_not_taken_back(database: Database) -> None:
    alerts = alerts_in(database, settings_for(ELSEWHERE, "https://hooks.example/two", settle_seconds=300))
    alerts.open(an_alert())
    alerts.close("storage_over_budget", "database")
    with database.engine.begin() as connection:
        connection.execute(text(
            "UPDATE omniops_meta.alert_deliveries SET attempts = 1 WHERE id = "
            "(SELECT max(id) FROM omniops_meta.alert_deliveries)"
        ))  # fmt: skip
    assert alerts.open(an_alert()).outcome == "opened"
    # Of the first episode both receivers hear the end, of the second the beginning.
    assert [d["event"] for d in database.rows(DELIVERIES)] == ["opened"] * 2 + ["closed"] * 2 + ["opened"] * 2


def test_the_same_occurrence_is_counted_once_even_after_its_episode_is_over(database: Database) -> None:
    alerts = alerts_in(database)
    assert alerts.open(an_alert(occurrence="run-1")).outcome == "opened"
    assert alerts.open(an_alert(occurrence="run-1")).outcome == "known"
    assert alerts.open(an_alert(occurrence="run-2")).outcome == "continued"
    assert alerts.open(an_alert(occurrence="run-1")).outcome == "known"
    alerts.close("storage_over_budget", "database")
    assert alerts.open(an_alert(occurrence="run-2")).outcome == "known"
    assert database.value("SELECT count(*) FROM alert_history WHERE closed_at IS NULL") == 0
    assert alerts.open(an_alert(occurrence="run-3")).outcome == "opened"
    assert database.rows("SELECT occurrences FROM alert_history ORDER BY id") == [
        {"occurrences": 2}, {"occurrences": 1},
    ]  # fmt: skip


def test_a_row_remembers_the_newest_occurrences_and_stays_small(database: Database) -> None:
    alerts = alerts_in(database)
    for n in range(120):
        alerts.open(an_alert(occurrence=f"run-{n}"))
    seen = database.value("SELECT details -> 'seen' FROM alert_history")
    assert seen == [f"run-{n}" for n in range(70, 120)]


def test_an_end_says_nothing_of_what_happened_after_it(database: Database) -> None:
    alerts = alerts_in(database)
    now = datetime.now(UTC)
    alerts.open(an_alert(at=now - timedelta(minutes=10)))
    assert alerts.close("storage_over_budget", "database", unless_seen_after=now - timedelta(minutes=11)) is None
    assert alerts.close("storage_over_budget", "database", unless_seen_after=now - timedelta(minutes=9)) is not None


def test_programs_that_report_at_once_make_one_row(database: Database) -> None:
    alerts = alerts_in(database, settings_for(ELSEWHERE))
    begin = threading.Barrier(8)
    outcomes: list[str] = []

    def report() -> None:
        begin.wait()
        for _ in range(5):
            outcomes.append(alerts.open(an_alert()).outcome)

    threads = [threading.Thread(target=report) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["continued"] * 39 + ["opened"]
    assert database.rows("SELECT occurrences FROM alert_history") == [{"occurrences": 40}]
    assert len(database.rows(DELIVERIES)) == 1


def test_a_customer_sees_its_own_alerts_and_writes_none(database: Database) -> None:
    with service_connection(engine=database.engine) as connection:
        mine = make_customer(connection).customer_id
        other = make_customer(connection).customer_id
        connection.execute(text("DELETE FROM alert_history"))
    alerts = alerts_in(database)
    alerts.open(an_alert(episode="mine", customer_id=mine))
    alerts.open(an_alert(episode="other", customer_id=other))
    alerts.open(an_alert(episode="the platform's"))
    with tenant_connection(mine, engine=database.engine) as connection:
        assert connection.scalars(text("SELECT episode FROM alert_history")).all() == ["mine"]
    with pytest.raises(Exception, match="permission denied"), tenant_connection(mine, engine=database.engine) as c:
        c.execute(text("SELECT * FROM omniops_meta.alert_deliveries"))


def test_the_list_has_open_ones_first_and_no_bookkeeping(database: Database) -> None:
    alerts = alerts_in(database)
    alerts.open(an_alert(episode="over", details={"n": 1}, occurrence="x"))
    alerts.close("storage_over_budget", "over")
    alerts.open(an_alert(episode="still", run_id="r-1"))
    assert [row["episode"] for row in alerts.list()] == ["still"]
    found = alerts.list(closed=True)
    assert [row["episode"] for row in found] == ["still", "over"]
    assert found[1]["details"] == {"n": 1}


def test_a_severity_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fatal.*info, warning, critical"):
        an_alert(severity="fatal")


anything = st.text(alphabet=st.characters(codec=None), max_size=60)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=anything,
    details=st.dictionaries(
        anything, st.one_of(anything, st.floats(), st.integers(), st.lists(anything, max_size=3))
    ),
)
def test_whatever_an_error_says_can_be_kept(database: Database, words: str, details: dict[str, object]) -> None:
    alerts = alerts_in(database)
    alerts.open(an_alert(message=words, what_to_do=words, details=details))
    assert database.value("SELECT count(*) FROM alert_history WHERE closed_at IS NULL") == 1


def test_details_without_end_are_left_out_and_the_alert_is_kept(database: Database) -> None:
    alerts_in(database).open(an_alert(details={"log": "x" * 1_000_000}))
    details = database.value("SELECT details FROM alert_history")
    assert isinstance(details, dict)
    assert "left_out" in details
