"""What may be queued, and what is refused with which words."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.postgres.message_queue import PersistentMessageQueue
from resources.postgres.queue_core import Held, Throttle, backoff, known_error
from resources.postgres.queue_messages import (
    InvalidMessage,
    MessageConflict,
    QueuedMessage,
    check_batch,
    check_message,
    describe_failure,
    same_body,
)
from resources.settings import InvalidSetting, QueueSettings


def message(**fields: Any) -> dict[str, Any]:
    return {"type": "chat", "key": "k", "value": 1, "timestamp": 1.5, **fields}


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ("text", "a message is a dictionary of type, key, value, timestamp, and not str"),
        ({"type": "chat"}, "key/value/timestamp missing"),
        (message(extra=1), "unknown: 'extra'"),
        (message(key=""), "key is a text that is not empty"),
        (message(key=7), "key is a text that is not empty, and not 7"),
        (message(key="a\0b"), "has a NUL or half of a surrogate pair"),
        (message(key="\ud800"), "has a NUL or half of a surrogate pair"),
        (message(key="ü" * 257), "has 514 bytes"),
        (message(type=None), "the type of message 'k' is a text"),
        (message(value={1, 2}), "has a set at value, which has no JSON form"),
        (message(value={"a": [b"x"]}), r"has a bytes at value.a\[0\]"),
        (message(value={1: "x"}), "has the key 1 at value; a JSON object's keys are texts"),
        (message(value={"a": 1, "a\0": 2}), "two keys at value that Postgres cannot tell apart"),
        (message(value=float("nan")), "has nan at value, which JSON cannot say"),
        (message(value=[float("inf")]), r"has inf at value\[0\]"),
        (message(value=nested(100)), "nested more than 64 levels deep"),
        (message(value="x" * 300_000), "and a message has 262,144 at most"),
        (message(value=10**5000), "has no JSON form"),
        (message(timestamp=None), "its timestamp is a number, a text or a datetime, and not None"),
        (message(timestamp=True), "its timestamp is a number"),
        (message(timestamp=dt.datetime(2026, 1, 1)), "its timestamp has no time zone"),  # noqa: DTZ001 - the case
    ],
)  # fmt: skip
def test_what_cannot_be_queued_is_refused_with_its_reason(given_: Any, says: str) -> None:
    with pytest.raises(InvalidMessage, match=says):
        check_message(given_)


def test_text_that_postgres_cannot_hold_is_repaired_and_counted() -> None:
    checked = check_message(message(value={"te\0xt": ["a\0\0b", "\ud83d\ude00", "\ud83d!"]}))
    assert checked.body["value"] == {"text": ["ab", "😀", "�!"]}
    # Three NUL, one pair in two halves, one half alone.
    assert checked.repairs == 3 + 2 + 1
    assert json.loads(checked.text) == checked.body


def test_a_datetime_becomes_its_iso_form_and_a_tuple_a_list() -> None:
    at = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    body = check_message(message(timestamp=at, value=(1, 2))).body
    assert (body["timestamp"], body["value"]) == ("2026-01-02T03:04:05+00:00", [1, 2])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=_JSON)
def test_every_json_value_without_nul_comes_through_as_it_is(value: Any) -> None:
    if "\\u0000" in json.dumps(value):
        return
    checked = check_message(message(value=value))
    assert checked.repairs == 0
    assert json.loads(checked.text)["value"] == value
    assert same_body(checked.body, checked.body)


def test_true_is_not_one_and_the_time_is_not_the_body() -> None:
    assert not same_body(message(value=True), message(value=1))
    assert not same_body(message(value={"a": [1]}), message(value={"a": [True]}))
    assert same_body(message(value=1), message(value=1.0))
    assert same_body(message(timestamp=1), message(timestamp=2))
    assert not same_body(message(type="a"), message(type="b"))


def test_a_batch_has_each_key_once() -> None:
    assert [m.key for m in check_batch([message(), message(key="b"), message()])] == ["k", "b"]
    with pytest.raises(MessageConflict, match="'k' is refused: the batch has it twice"):
        check_batch([message(), message(value=2)])
    with pytest.raises(InvalidMessage, match="10,000 messages at most"):
        check_batch(message(key=str(n)) for n in range(10_001))


def test_a_failure_is_kept_in_words_that_postgres_can_hold() -> None:
    assert describe_failure(ValueError("no\0\ud800")) == "ValueError: no�"
    assert describe_failure(KeyError()) == "KeyError"
    assert len(describe_failure(ValueError("x" * 10_000))) < 4_100


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((True, "nobody", "s"), "customer_id 'nobody' is not a uuid"),
        ((True, uuid.uuid4(), ""), "session_id is a text that is not empty"),
        ((True, uuid.uuid4(), "x" * 513), "session_id has 513 bytes"),
        ((True, uuid.uuid4(), "s", "none"), "conversation_id 'none' is not a uuid"),
    ],
)
def test_a_queue_for_nobody_is_refused(arguments: Any, says: str) -> None:
    with pytest.raises(InvalidMessage, match=says):
        PersistentMessageQueue(*arguments)


def test_settings_come_from_the_environment_and_bad_ones_are_named() -> None:
    found = QueueSettings.from_environment(
        {"OMNIOPS_QUEUE_LEASE_SECONDS": "5", "OMNIOPS_QUEUE_NOTIFY": "no", "OMNIOPS_QUEUE_MAX_TRIES": "2",
         "OMNIOPS_QUEUE_POLL_SECONDS": ""}
    )  # fmt: skip
    assert (found.lease_seconds, found.notify, found.max_tries, found.poll_seconds) == (5.0, False, 2, 1.0)
    for variable, value, says in (
        ("LEASE_SECONDS", "soon", "OMNIOPS_QUEUE_LEASE_SECONDS is 'soon', and must be a number"),
        ("MAX_TRIES", "2.5", "must be a whole number"),
        ("MAX_TRIES", "0", "max_tries is 0, and must be a number from 1 to 1000"),
        ("NOTIFY", "maybe", "must be yes or no"),
        ("LEASE_SECONDS", "nan", "lease_seconds is nan"),
    ):
        with pytest.raises(InvalidSetting, match=says):
            QueueSettings.from_environment({f"OMNIOPS_QUEUE_{variable}": value})


def test_arguments_stand_above_settings() -> None:
    settings = QueueSettings(lease_seconds=7, max_tries=2)
    queue = PersistentMessageQueue(True, uuid.uuid4(), "s", None, max_tries=9, settings=settings)
    assert (queue.settings.max_tries, queue.settings.lease_seconds) == (9, 7)


def test_backoff_doubles_up_to_its_limit_and_is_scattered() -> None:
    settings = QueueSettings(backoff_seconds=1, max_backoff_seconds=10)
    assert [backoff(settings, n, lambda: 1.0) for n in (1, 2, 3, 4, 5, 500)] == [1, 2, 4, 8, 10, 10]
    assert [backoff(settings, n, lambda: 0.0) for n in (1, 2, 5)] == [0.5, 1, 5]


def test_a_lease_is_renewed_while_its_handler_works_and_not_for_ever() -> None:
    now = [0.0]
    held = Held(QueueSettings(lease_seconds=30, max_handling_seconds=100), lambda: now[0])
    one = QueuedMessage(message(), id=uuid.uuid4(), customer_id=uuid.uuid4())
    held.add(one)
    assert held.due() == []
    renewed_at = []
    for beat in range(1, 15):
        now[0] = beat * 10.0
        for messages in held.due():
            renewed_at.append(now[0])
            assert held.renewed(messages, {one.id}) == []
    assert renewed_at == [float(n) for n in range(10, 100, 10)]
    now[0] = 20.0
    held.add(one)
    assert held.renewed([one], set()) == [one]
    assert held.due() == []


def test_errors_of_the_database_that_the_queue_can_explain_are_explained() -> None:
    assert "no customer with this id" in str(known_error("23503", 'constraint "message_queue_customer_id_fkey"'))
    assert "another transaction has been writing to this session" in str(known_error("55P03", ""))
    assert known_error("23503", "another_fkey") is None
    assert known_error(None, "") is None


def test_wake_ups_are_let_through_one_in_a_while() -> None:
    now = [1.0]
    throttle = Throttle(lambda: now[0])
    assert [throttle.may("a"), throttle.may("a"), throttle.may("b")] == [True, False, True]
    now[0] += 0.06
    assert throttle.may("a")


def test_the_queue_needs_no_dagster_and_no_crawler() -> None:
    code = (
        "import sys; from resources.postgres import PersistentMessageQueue, QueueWorker, AsyncQueueWorker; "
        "print([m for m in sys.modules if m.split('.')[0] in ('dagster', 'crawlee', 'pandas')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
