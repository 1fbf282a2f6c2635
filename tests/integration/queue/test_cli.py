"""`omniops queue` at the terminal: what it prints, and its exit status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from omniops_pipelines.cli import main
from resources import stack
from resources.postgres.compliance import place_hold
from resources.postgres.message_queue import PersistentMessageQueue
from tests.integration.queue.conftest import STILL, end_leases, make_customer, message, pass_backoff, states
from tests.integration.queue.test_queue import Seen, _claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.databases import Database

pytestmark = pytest.mark.integration


@pytest.fixture
def omniops(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    for name, value in database.environment(tmp_path / "home").items():
        if name.startswith("OMNIOPS_"):
            monkeypatch.setenv(name, value)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["omniops", "queue", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    yield call
    stack.release()


def give_up(database: Database, queue: PersistentMessageQueue, key: str) -> None:
    """Have a message tried until it is given up; what stands behind it is handled."""
    for _ in range(STILL.max_tries):
        queue.replay_with_persistence(Seen(**{key: 1}))
        pass_backoff(database)


def test_messages_are_listed_and_shown(database: Database, queue: PersistentMessageQueue, omniops: Any) -> None:
    assert omniops("list") == (0, "There is no such message.\n", "")
    taken = queue.enqueue_many([message("a", {"text": "hello there"}), message("b")])
    queue.replay_with_persistence(Seen(), limit=1)
    status, out, err = omniops("list", "--json")
    assert (status, err) == (0, "")
    assert [(m["key"], m["status"], m["customer"]) for m in json.loads(out)] == [
        ("b", "pending", "acme"), ("a", "completed", "acme"),
    ]  # fmt: skip
    only = ("--status", "pending", "--customer", "acme", "--session", "s")
    assert [m["key"] for m in json.loads(omniops("list", *only, "--json")[1])] == ["b"]
    assert "completed" in omniops("list")[1]
    shown = json.loads(omniops("show", str(taken[1].id), "--json")[1])
    assert (shown["message"], shown["status"], shown["open_before"], shown["open_behind"]) == (
        message("b"), "pending", 0, 0,
    )  # fmt: skip
    assert "hello there" in omniops("show", str(taken[0].id))[1]
    status, out, err = omniops("show", str(uuid4()))
    assert (status, out) == (1, "")
    assert err.startswith("omniops: there is no queued message")
    assert omniops("show", "nonsense")[0] == 2
    assert omniops("list", "--customer", "nobody")[0] == 1


def test_failed_messages_are_tried_again_in_their_order_before_what_came_later(
    database: Database, queue: PersistentMessageQueue, omniops: Any
) -> None:
    queue.enqueue_many([message(k) for k in "abc"])
    give_up(database, queue, "a")
    queue.enqueue(message("d"))
    give_up(database, queue, "d")
    assert [s for _, s, _ in states(database)] == ["failed", "completed", "completed", "failed"]
    queue.enqueue(message("e"))
    status, out, _ = omniops("retry", "--customer", "acme", "--session", "s", "--json")
    done = json.loads(out)
    assert (status, [(m["key"], m["status"], m["overtaken_by"]) for m in done]) == (
        0, [("a", "pending", 2), ("d", "pending", 0)],
    )  # fmt: skip
    assert queue.replay_with_persistence(Seen()).handled == ("a", "d", "e")
    assert omniops("retry", "--all")[1] == "No message has failed.\n"


def test_a_session_that_is_being_handled_opens_its_failed_messages_when_that_is_done(
    database: Database, queue: PersistentMessageQueue, omniops: Any
) -> None:
    (first, *_) = queue.enqueue_many([message(k) for k in "abc"])
    give_up(database, queue, "a")
    queue.enqueue_many([message(k) for k in "de"])
    said: list[str] = []

    def handler(given: Any) -> None:
        if given.key == "d":
            said.append(omniops("retry", str(first.id))[1])
        seen(given)

    seen = Seen()
    assert queue.replay_with_persistence(handler).handled == ("d", "a", "e")
    assert (
        "1 to be tried again; 1 of them when the message of their session that is being handled is done." in said[0]
    )


def test_what_cannot_be_tried_again_is_named(database: Database, queue: PersistentMessageQueue, omniops: Any) -> None:
    failed, pending = queue.enqueue_many([message(k) for k in "ab"])
    for arguments, status, word in (
        (("retry",), 2, "which messages? Name them, or --customer, or --all"),
        (("retry", "--all", "--customer", "acme"), 2, "one of these"),
        (("retry", "--session", "s", "--all"), 2, "a session belongs to a customer"),
        (("retry", str(pending.id)), 1, f"message {pending.id} is pending: only a failed one can be tried again"),
        (("retry", str(uuid4())), 1, "there is no queued message"),
        (("retry", "--customer", "nobody"), 1, "there is no customer 'nobody'"),
    ):
        found = omniops(*arguments)
        assert (found[0], found[1]) == (status, "")
        assert word in " ".join(found[2].split())
    assert failed.new
    assert [s for _, s, _ in states(database)] == ["pending", "pending"]


def test_messages_are_dropped_only_when_that_is_meant(
    database: Database, queue: PersistentMessageQueue, omniops: Any
) -> None:
    taken = queue.enqueue_many([message(k) for k in "abc"])
    status, out, err = omniops("drop", str(taken[0].id))
    assert (status, "Would be removed" in out) == (2, True)
    assert "1 messages would be removed, and there is no way back: say --yes" in " ".join(err.split())
    assert len(states(database)) == 3
    status, out, _ = omniops("drop", str(taken[0].id), "--yes", "--json")
    assert (status, [m["key"] for m in json.loads(out)["removed"]]) == (0, ["a"])
    status, out, err = omniops("drop", "--customer", "acme", "--json")
    assert (status, out) == (2, "")
    status, out, _ = omniops("drop", "--customer", "acme", "--session", "s", "--status", "pending", "--yes")
    assert (status, "Removed" in out) == (0, True)
    assert states(database) == []
    assert omniops("drop", "--customer", "acme", "--yes")[1] == "There is no such message: nothing was removed.\n"
    assert omniops("drop", str(uuid4()), "--yes")[0] == 1
    assert omniops("drop", "--yes")[0] == 2


def test_a_leased_message_and_a_held_customers_are_not_dropped(
    database: Database, queue: PersistentMessageQueue, omniops: Any
) -> None:
    queue.enqueue_many([message(k) for k in "ab"])
    leased = _claim(database, queue)
    status, _, err = omniops("drop", "--customer", "acme", "--yes")
    assert (status, f"message {leased['id']} of session s is being handled until" in err) == (1, True)
    end_leases(database)
    place_hold(database.engine, "acme", "case 1")
    status, _, err = omniops("drop", "--customer", "acme", "--yes")
    assert (status, "customer acme is under a legal hold" in err) == (1, True)
    assert len(states(database)) == 2


def test_stats_count_and_name_what_is_held_up_with_its_age(
    database: Database, queue: PersistentMessageQueue, omniops: Any
) -> None:
    assert omniops("stats") == (0, "The queue is empty.\n", "")
    queue.enqueue_many([message(k) for k in "abc"])
    queue.replay_with_persistence(Seen(b=1))
    died = PersistentMessageQueue(
        True, make_customer(database, "globex"), "t", engine=database.engine, settings=STILL
    )
    died.enqueue(message("x"))
    _claim(database, died)
    end_leases(database)
    fine = PersistentMessageQueue(True, died.customer_id, "u", engine=database.engine, settings=STILL)
    fine.enqueue(message("y"))
    found = json.loads(omniops("stats", "--json")[1])
    assert [(c["customer"], c["pending"], c["processing"], c["completed"], c["open_sessions"])
            for c in found["customers"]] == [("acme", 2, 0, 1, 1), ("globex", 1, 1, 0, 2)]  # fmt: skip
    held_up = found["blocked_sessions"]
    assert [(b["customer"], b["session_id"], b["key"], b["messages_behind"], b["retry_count"]) for b in held_up] == [
        ("acme", "s", "b", 1, 1), ("globex", "t", "x", 0, 0),
    ]  # fmt: skip
    assert held_up[0]["error_message"] == "ValueError: no b"
    assert held_up[0]["age_seconds"] >= held_up[1]["age_seconds"] > 0
    assert "Held up" in omniops("stats", "--customer", "acme")[1]
