"""The queue's logic without its input and output: one description for the synchronous and the asynchronous face.

A flow is a generator. It yields a step (a query, a handler to call, a time to wait), is sent what came of it, and
returns its result; the faces (`message_queue`, `queue_worker`) do the steps, each in its own way. Everything that is
decided about a message is decided here or in the SQL functions of revision 0004.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar
from uuid import UUID, uuid4

from resources.postgres.connection import is_connection_lost
from resources.postgres.queue_messages import (
    CheckedMessage,
    Enqueued,
    GivenUp,
    LeaseLost,
    MessageConflict,
    NoSuchCustomer,
    QueuedMessage,
    RejectMessage,
    ReplayResult,
    SessionBusy,
    describe_failure,
    same_body,
)
from resources.postgres.tenancy import AS_WHOM, as_whom

if TYPE_CHECKING:
    from collections.abc import Callable

    from resources.settings import QueueSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")
Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """One statement in a transaction of its own. It can be repeated where the answer was lost with a connection.

    Attributes:
        statement: constant text, its parameters in the driver's form (`%(name)s`), because both faces send it.
        parameters: of it.
        customer: as whom; None: as the service.
        by_itself: the same, becoming the customer as its first step, for a transaction of its own; None where the
            statement is more than calls of functions.
    """

    statement: str
    parameters: dict[str, Any]
    customer: UUID | None
    by_itself: str | None = None


@dataclass(frozen=True, slots=True)
class Handle:
    """Call the handler, and keep the message's lease meanwhile.

    Attributes:
        message: what for.
        finish: the acknowledgement, where it shares the handler's transaction; the step's answer is its rows then.
    """

    message: QueuedMessage
    finish: Query | None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until woken, so many seconds at most. The answer: whether something woke it."""

    seconds: float


Step: TypeAlias = Query | Handle | Wait
Flow: TypeAlias = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim found.

    Attributes:
        outcome: `claimed`, `empty`, `leased`, `waiting`; from any session also `end` and `more`.
        message: what was claimed.
        key: of the message that was claimed, or that stands in the way.
        until: end of the lease, or of the waiting.
        error: of the last failed try of the message that stands in the way.
        dead: keys of messages that were given up on the way.
        cursor: the session after which to go on.
        soonest: when one of the sessions that were passed over comes free.
    """

    outcome: str
    message: QueuedMessage | None = None
    key: str | None = None
    until: datetime | None = None
    error: str | None = None
    dead: tuple[str, ...] = ()
    cursor: str = ""
    soonest: datetime | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """What became of a message whose try failed: `retry`, `dead` or `lost`."""

    outcome: str
    next_try_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Attended:
    """What became of a claimed message: `handled`, `retry`, `dead` or `lost`; and what was claimed with its end."""

    outcome: str
    error: str | None = None
    next_try_at: datetime | None = None
    following: Claim | None = None


@dataclass(frozen=True, slots=True)
class GoOn:
    """What to claim together with an acknowledgement.

    Attributes:
        own_session: the next message of the same session, if there is one.
        others: else (or, without `own_session`, at once) the next one of another session, after `cursor`.
        cursor: name of a session.
    """

    own_session: bool = True
    others: bool = False
    cursor: str = ""


class Store(Protocol):
    """Where messages are kept: Postgres, or this process's memory."""

    def enqueue(self, messages: Sequence[CheckedMessage]) -> Flow[list[Enqueued]]:
        """Take messages in this order, all or none."""
        ...

    def unprocessed(self) -> Flow[list[QueuedMessage]]:
        """What is not done, in order."""
        ...

    def claim(self) -> Flow[Claim]:
        """Take the session's next message."""
        ...

    def finish(self, message: QueuedMessage, go_on: GoOn | None) -> Query | None:
        """The acknowledgement as a statement for the handler's own transaction; None where there is none."""
        ...

    def finished(self, message: QueuedMessage, rows: Sequence[Row]) -> Claim | None:
        """What such a statement answered.

        Raises:
            LeaseLost: the message is no longer its handler's.
        """
        ...

    def acknowledge(self, message: QueuedMessage, go_on: GoOn | None) -> Flow[Claim | None]:
        """The message is handled; claim another one with it.

        Raises:
            LeaseLost: the message is no longer its handler's.
        """
        ...

    def was_acknowledged(self, message: QueuedMessage) -> Flow[bool]:
        """Whether an acknowledgement whose answer was lost was committed."""
        ...

    def fail(
        self, message: QueuedMessage, error: str | None, delay: float, max_tries: int, *, counted: bool
    ) -> Flow[Failed]:
        """A try did not succeed."""
        ...


# --- what is done with messages --------------------------------------------------------------------------------


def backoff(settings: QueueSettings, tries: int, chance: Callable[[], float]) -> float:
    """Seconds until the next try after so many failed ones: doubled each time, less a random part of up to a half.

    The random part keeps messages that failed together (a service was away) from coming back together.
    """
    longest = min(settings.max_backoff_seconds, settings.backoff_seconds * 2.0 ** min(tries - 1, 60))
    return longest * (0.5 + 0.5 * chance())


def attend(  # noqa: PLR0911 - one for each end
    store: Store,
    message: QueuedMessage,
    settings: QueueSettings,
    *,
    transactional: bool,
    go_on: GoOn | None,
    chance: Callable[[], float] = random.random,
) -> Flow[Attended]:
    """Have a claimed message handled, and say what became of it. What interrupts the program gives it back."""
    try:
        rows = yield Handle(message, store.finish(message, go_on) if transactional else None)
        if transactional:
            return Attended("handled", following=store.finished(message, rows))
    except GeneratorExit:
        # Nobody goes on with this flow; the lease runs out.
        raise
    except LeaseLost as error:
        return Attended("lost", str(error))
    except RejectMessage as error:
        failed = yield from store.fail(message, describe_failure(error), 0.0, 0, counted=True)
        return Attended(failed.outcome, describe_failure(error))
    except Exception as error:  # noqa: BLE001 - whatever a handler raises
        if transactional and is_connection_lost(error) and (yield from store.was_acknowledged(message)):
            return Attended("handled")
        delay = backoff(settings, message.retry_count + 1, chance)
        failed = yield from store.fail(message, describe_failure(error), delay, settings.max_tries, counted=True)
        return Attended(failed.outcome, describe_failure(error), failed.next_try_at)
    except BaseException:
        # The program is told to end: that is not the message's fault.
        yield from store.fail(message, None, 0.0, settings.max_tries, counted=False)
        raise
    try:
        following = yield from store.acknowledge(message, go_on)
    except LeaseLost as error:
        return Attended("lost", str(error))
    return Attended("handled", following=following)


def replay(
    store: Store,
    settings: QueueSettings,
    *,
    transactional: bool,
    limit: int | None,
    on_handled: Callable[[QueuedMessage], None],
    chance: Callable[[], float] = random.random,
) -> Flow[ReplayResult]:
    """Have the session's messages handled in order, until none is left or one holds up the rest."""
    handled: list[str] = []
    given_up: list[GivenUp] = []
    claim = yield from store.claim()
    while True:
        given_up += [GivenUp(key, "its handlers' leases ran out too often") for key in claim.dead]
        message = claim.message
        if message is None:
            if claim.outcome == "empty":
                return ReplayResult(tuple(handled), tuple(given_up))
            return ReplayResult(tuple(handled), tuple(given_up), claim.key, claim.outcome, claim.error, claim.until)
        last = limit is not None and len(handled) + 1 >= limit
        attended = yield from attend(
            store, message, settings, transactional=transactional, go_on=None if last else GoOn(), chance=chance
        )
        if attended.outcome in ("handled", "dead"):
            on_handled(message)
            if attended.outcome == "handled":
                handled.append(message.key)
            else:
                given_up.append(GivenUp(message.key, attended.error or ""))
            if limit is not None and len(handled) >= limit:
                return ReplayResult(tuple(handled), tuple(given_up), reason="limit")
            if attended.following is None or attended.following.outcome == "empty":
                # Asked again without knowing where one was: what somebody else wrote by hand is seen too.
                claim = yield from store.claim()
            else:
                claim = attended.following
            continue
        reason = "failed" if attended.outcome == "retry" else "lost"
        return ReplayResult(
            tuple(handled), tuple(given_up), message.key, reason, attended.error, attended.next_try_at
        )


# --- Postgres --------------------------------------------------------------------------------------------------

_ENQUEUE: Final = """
    SELECT key, id, place, outcome
    FROM public.message_queue_enqueue(%(customer)s, %(session)s, %(conversation)s, CAST(%(messages)s AS jsonb))
"""
_CLAIM: Final = """
    SELECT c.* FROM public.message_queue_claim(
        %(customer)s, %(session)s, %(token)s, make_interval(secs => %(lease)s), %(max_tries)s) AS c
"""
_CLAIM_NEXT: Final = """
    SELECT c.* FROM public.message_queue_claim_next(
        %(customer)s, %(cursor)s, %(token)s, make_interval(secs => %(lease)s), %(max_tries)s) AS c
"""
_ACKNOWLEDGE: Final = """
    SELECT a.acknowledged FROM public.message_queue_acknowledge(%(customer)s, %(id)s, %(token)s) AS a
"""
_ACKNOWLEDGE_AND_CLAIM: Final = """
    SELECT a.acknowledged, CAST(%(next_token)s AS uuid) AS token, c.*
    FROM public.message_queue_acknowledge(%(customer)s, %(id)s, %(token)s) AS a
    CROSS JOIN LATERAL public.message_queue_claim(
        CASE WHEN a.acknowledged THEN CAST(%(customer)s AS uuid) END, %(session)s,
        %(next_token)s, make_interval(secs => %(lease)s), %(max_tries)s,
        CASE WHEN NOT a.reopened THEN CAST(%(place)s AS bigint) END) AS c
"""
_ACKNOWLEDGE_AND_CLAIM_NEXT: Final = """
    SELECT a.acknowledged, CAST(%(next_token)s AS uuid) AS token, c.*
    FROM public.message_queue_acknowledge(%(customer)s, %(id)s, %(token)s) AS a
    CROSS JOIN LATERAL public.message_queue_claim_next(
        CASE WHEN a.acknowledged THEN CAST(%(customer)s AS uuid) END, %(cursor)s,
        %(next_token)s, make_interval(secs => %(lease)s), %(max_tries)s,
        CAST(%(own)s AS text), CASE WHEN NOT a.reopened THEN CAST(%(place)s AS bigint) END) AS c
"""
# Waits for a transaction that is still being committed: its connection may be lost and its backend alive.
_WAS_ACKNOWLEDGED: Final = """
    SELECT status = 'completed' AND lease_token = %(token)s AS done FROM public.message_queue
    WHERE id = %(id)s AND customer_id = %(customer)s FOR NO KEY UPDATE
"""
_FAIL: Final = """
    SELECT f.outcome, f.available_at FROM public.message_queue_fail(
        %(customer)s, %(id)s, %(token)s, %(error)s, make_interval(secs => %(delay)s), %(max_tries)s, %(counted)s) AS f
"""
_RENEW: Final = """
    SELECT r.id FROM public.message_queue_renew(
        %(customer)s, CAST(%(ids)s AS uuid[]), CAST(%(tokens)s AS uuid[]), make_interval(secs => %(lease)s)) AS r (id)
"""
_UNPROCESSED: Final = """
    SELECT id, position AS place, conversation_id, message_data AS body, status, retry_count, created_at, expires_at,
           available_at, leased_until, error_message, customer_id, session_id
    FROM public.message_queue
    WHERE customer_id = %(customer)s AND session_id = %(session)s AND is_open
      AND (expires_at > now() OR (status = 'processing' AND leased_until > now()))
    ORDER BY position
"""
# From one customer to the next, over the index of open messages.
_CUSTOMERS: Final = """
    WITH RECURSIVE c AS (
        (SELECT customer_id FROM public.message_queue WHERE is_open ORDER BY customer_id LIMIT 1)
        UNION ALL
        SELECT (SELECT q.customer_id FROM public.message_queue AS q
                WHERE q.is_open AND q.customer_id > c.customer_id ORDER BY q.customer_id LIMIT 1)
        FROM c WHERE c.customer_id IS NOT NULL
    )
    SELECT customer_id FROM c WHERE customer_id IS NOT NULL
"""


def _by_itself(statement: str) -> str:
    """The statement with its customer as the first step: see `tenancy.AS_WHOM`."""
    calls = statement.replace("FROM public.", "FROM me CROSS JOIN LATERAL public.", 1)
    return AS_WHOM + calls.replace("%(customer)s", "CASE WHEN me.ready THEN CAST(%(customer)s AS uuid) END", 1)


_BY_ITSELF: Final = {
    statement: _by_itself(statement)
    for statement in (
        _ENQUEUE, _CLAIM, _CLAIM_NEXT, _ACKNOWLEDGE, _ACKNOWLEDGE_AND_CLAIM, _ACKNOWLEDGE_AND_CLAIM_NEXT, _FAIL,
        _RENEW,
    )
}  # fmt: skip


def _call(statement: str, parameters: dict[str, Any], customer: UUID) -> Query:
    """Functions called as the customer."""
    return Query(
        statement, {**parameters, "customer": customer, **as_whom(customer)}, customer, _BY_ITSELF[statement]
    )


CHANNEL: Final = "omniops_message_queue"
# Without a payload: whoever may connect may listen, and shall learn nothing of anybody's sessions.
WAKE: Final = f"NOTIFY {CHANNEL}"
LISTEN: Final = f"LISTEN {CHANNEL}"


def customers_with_messages() -> Flow[list[UUID]]:
    """Customers with open messages, as the service."""
    rows: Sequence[Row] = yield Query(_CUSTOMERS, {}, None)
    return [row["customer_id"] for row in rows]


def renewal(messages: Sequence[QueuedMessage], lease_seconds: float) -> Query:
    """Prolong leases of messages of one customer; the rows have the ids of those that still are their handlers'."""
    return _call(
        _RENEW,
        {
            "customer": messages[0].customer_id,
            "ids": [message.id for message in messages],
            "tokens": [message.lease_token for message in messages],
            "lease": lease_seconds,
        },
        messages[0].customer_id,
    )


@dataclass(frozen=True, slots=True)
class PostgresStore:
    """One customer's messages in Postgres: of one session, or (a worker's) of all.

    Every statement runs as the tenant.
    """

    customer_id: UUID
    settings: QueueSettings
    session_id: str = ""
    conversation_id: UUID | None = None

    def enqueue_query(self, messages: Sequence[CheckedMessage]) -> Query:
        """The statement that takes messages."""
        return _call(
            _ENQUEUE,
            {
                "customer": self.customer_id,
                "session": self.session_id,
                "conversation": self.conversation_id,
                "messages": f"[{','.join(message.text for message in messages)}]",
            },
            self.customer_id,
        )

    def enqueued(self, messages: Sequence[CheckedMessage], rows: Sequence[Row]) -> list[Enqueued] | None:
        """What that statement answered, in the order of the messages; None if it is to be asked again.

        Raises:
            MessageConflict: a key belongs to another message already.
        """
        found = {row["key"]: row for row in rows}
        for row in rows:
            if row["outcome"] == "conflict":
                raise MessageConflict(row["key"], f"session {self.session_id!r} has this key with another body")
            if row["outcome"] == "held":
                raise MessageConflict(
                    row["key"],
                    "its key is that of a message that has expired and may not be replaced, because the customer is "
                    "under a legal hold: use another key",
                )
        if any(message.key not in found for message in messages):
            # Somebody who does not use the function wrote the same key in this very moment.
            return None
        return [
            Enqueued(
                message.key, found[message.key]["id"], found[message.key]["place"],
                new=found[message.key]["outcome"] == "new", persisted=True, repairs=message.repairs,
            )
            for message in messages
        ]  # fmt: skip

    def enqueue(self, messages: Sequence[CheckedMessage]) -> Flow[list[Enqueued]]:
        """Take messages in this order, all or none."""
        for _ in range(3):
            rows = yield self.enqueue_query(messages)
            taken = self.enqueued(messages, rows)
            if taken is not None:
                return taken
        msg = f"messages of session {self.session_id!r} were written and removed by somebody else at the same time"
        raise RuntimeError(msg)

    def unprocessed(self) -> Flow[list[QueuedMessage]]:
        """What is not done, in order."""
        rows = yield Query(_UNPROCESSED, {"customer": self.customer_id, "session": self.session_id}, self.customer_id)
        return [message_of(row) for row in rows]

    def claim(self) -> Flow[Claim]:
        """Take the session's next message."""
        token = uuid4()
        rows = yield _call(_CLAIM, {"session": self.session_id, **self._terms(token)}, self.customer_id)
        return self._claim_of(rows[0], self.session_id, token)

    def claim_next(self, cursor: str) -> Flow[Claim]:
        """Take the next message of a session after `cursor`."""
        token = uuid4()
        rows = yield _call(_CLAIM_NEXT, {"cursor": cursor, **self._terms(token)}, self.customer_id)
        return self._claim_of(rows[0], rows[0]["session"], token)

    def finish(self, message: QueuedMessage, go_on: GoOn | None) -> Query:
        """The acknowledgement as a statement."""
        parameters: dict[str, Any] = {
            "customer": self.customer_id, "id": message.id, "token": message.lease_token,
        }  # fmt: skip
        if go_on is None:
            return _call(_ACKNOWLEDGE, parameters, self.customer_id)
        token = uuid4()
        parameters |= {**self._terms(message.lease_token), "next_token": token, "place": message.position}
        if not go_on.others:
            parameters["session"] = message.session_id
            return _call(_ACKNOWLEDGE_AND_CLAIM, parameters, self.customer_id)
        parameters |= {"cursor": go_on.cursor, "own": message.session_id if go_on.own_session else None}
        return _call(_ACKNOWLEDGE_AND_CLAIM_NEXT, parameters, self.customer_id)

    def finished(self, message: QueuedMessage, rows: Sequence[Row]) -> Claim | None:
        """What such a statement answered."""
        check_acknowledged(message, rows)
        row = rows[0]
        if "outcome" not in row:
            return None
        return self._claim_of(row, row.get("session") or message.session_id, row["token"])

    def acknowledge(self, message: QueuedMessage, go_on: GoOn | None) -> Flow[Claim | None]:
        """The message is handled; claim another one with it."""
        rows = yield self.finish(message, go_on)
        return self.finished(message, rows)

    def was_acknowledged(self, message: QueuedMessage) -> Flow[bool]:
        """Whether an acknowledgement whose answer was lost was committed."""
        rows = yield Query(
            _WAS_ACKNOWLEDGED,
            {"customer": self.customer_id, "id": message.id, "token": message.lease_token},
            self.customer_id,
        )
        return bool(rows and rows[0]["done"])

    def fail(
        self, message: QueuedMessage, error: str | None, delay: float, max_tries: int, *, counted: bool
    ) -> Flow[Failed]:
        """A try did not succeed."""
        rows = yield _call(
            _FAIL,
            {
                "customer": self.customer_id, "id": message.id, "token": message.lease_token, "error": error,
                "delay": delay, "max_tries": max_tries, "counted": counted,
            },
            self.customer_id,
        )  # fmt: skip
        return Failed(rows[0]["outcome"], rows[0]["available_at"])

    def _terms(self, token: UUID | None) -> dict[str, Any]:
        return {
            "customer": self.customer_id,
            "token": token,
            "lease": self.settings.lease_seconds,
            "max_tries": self.settings.max_tries,
        }

    def _claim_of(self, row: Row, session_id: str, token: UUID) -> Claim:
        message = None
        if row["outcome"] == "claimed":
            message = message_of(
                {**row, "customer_id": self.customer_id, "session_id": session_id, "status": "processing",
                 "leased_until": row["until"], "available_at": None, "lease_token": token}
            )  # fmt: skip
        return Claim(
            row["outcome"], message, row["key"], row["until"], row["error_message"], tuple(row["dead"] or ()),
            row.get("cursor") or "", row.get("soonest"),
        )  # fmt: skip


def check_acknowledged(message: QueuedMessage, rows: Sequence[Row]) -> None:
    """Go on only if an acknowledgement was taken.

    Raises:
        LeaseLost: it was not.
    """
    if not rows[0]["acknowledged"]:
        msg = (
            f"the lease of message {message.key!r} of session {message.session_id!r} was lost before it was "
            "acknowledged: it ran out, and the message will be handled again; a longer OMNIOPS_QUEUE_LEASE_SECONDS "
            "helps a handler that is often kept from renewing it"
        )
        raise LeaseLost(msg)


def message_of(row: Row) -> QueuedMessage:
    """A message from its row."""
    return QueuedMessage(
        row["body"], id=row["id"], position=row["place"], customer_id=row["customer_id"],
        session_id=row["session_id"], conversation_id=row["conversation_id"], status=row["status"],
        retry_count=row["retry_count"], created_at=row["created_at"], expires_at=row["expires_at"],
        available_at=row["available_at"], leased_until=row["leased_until"], error_message=row["error_message"],
        lease_token=row.get("lease_token"),
    )  # fmt: skip


# --- memory ----------------------------------------------------------------------------------------------------


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class MemoryStore:
    """One session's messages in this process alone: the same order, keys, tries and expiry, and nothing survives it.

    Nobody else sees them, so there is nothing to lease; a handler that dies takes its queue with it.
    """

    customer_id: UUID
    session_id: str
    conversation_id: UUID | None
    kept: timedelta = timedelta(hours=24)
    now: Callable[[], datetime] = _utc_now
    _messages: dict[str, QueuedMessage] = field(default_factory=dict)
    _positions: count[int] = field(default_factory=lambda: count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def messages(self) -> list[QueuedMessage]:
        """What is not done, in order."""
        self._expire()
        return [m for m in self._messages.values() if m.status in ("pending", "processing")]

    def enqueue(self, messages: Sequence[CheckedMessage]) -> Flow[list[Enqueued]]:
        """Take messages in this order, all or none."""
        yield from ()
        self._expire()
        for message in messages:
            there = self._messages.get(message.key)
            if there is not None and not same_body(there, message.body):
                raise MessageConflict(message.key, f"session {self.session_id!r} has this key with another body")
        taken = []
        for message in messages:
            there = self._messages.get(message.key)
            if there is None:
                self._messages[message.key] = there = QueuedMessage(
                    message.body, id=uuid4(), position=next(self._positions), customer_id=self.customer_id,
                    session_id=self.session_id, conversation_id=self.conversation_id, status="pending",
                    retry_count=0, created_at=self.now(), expires_at=self.now() + self.kept, available_at=self.now(),
                )  # fmt: skip
                taken.append(Enqueued(message.key, there.id, there.position, True, False, message.repairs))
            else:
                taken.append(Enqueued(message.key, there.id, there.position, False, False, message.repairs))
        return taken

    def unprocessed(self) -> Flow[list[QueuedMessage]]:
        """What is not done, in order."""
        yield from ()
        return self.messages()

    def claim(self) -> Flow[Claim]:
        """Take the next message."""
        yield from ()
        with self._lock:
            for message in self.messages():
                if message.status == "processing":
                    return Claim("leased", key=message.key)
                if message.available_at is not None and message.available_at > self.now():
                    return Claim("waiting", key=message.key, until=message.available_at, error=message.error_message)
                message.status = "processing"
                return Claim("claimed", message, message.key)
            return Claim("empty")

    def finish(self, message: QueuedMessage, go_on: GoOn | None) -> Query | None:
        """There is no transaction to share."""
        del message, go_on
        return None

    def finished(self, message: QueuedMessage, rows: Sequence[Row]) -> Claim | None:
        """There is no such statement."""
        del message, rows
        return None

    def acknowledge(self, message: QueuedMessage, go_on: GoOn | None) -> Flow[Claim | None]:
        """The message is handled; claim the next one with it."""
        yield from ()
        message.status = "completed"
        if go_on is None:
            return None
        return (yield from self.claim())

    def was_acknowledged(self, message: QueuedMessage) -> Flow[bool]:
        """No answer is ever lost."""
        yield from ()
        return message.status == "completed"

    def fail(
        self, message: QueuedMessage, error: str | None, delay: float, max_tries: int, *, counted: bool
    ) -> Flow[Failed]:
        """A try did not succeed."""
        yield from ()
        message.error_message = error or message.error_message
        message.retry_count += counted
        if counted and message.retry_count >= max_tries:
            message.status = "failed"
            return Failed("dead")
        message.status = "pending"
        message.available_at = self.now() + timedelta(seconds=delay)
        return Failed("retry", message.available_at)

    def _expire(self) -> None:
        now = self.now()
        gone = [k for k, m in self._messages.items() if m.expires_at <= now and m.status != "processing"]
        for key in gone:
            del self._messages[key]


# --- what both faces keep --------------------------------------------------------------------------------------


class Held:
    """Messages that are being handled, and when each lease was last known to be good. Not safe for threads by itself.

    Args:
        settings: how long leases are, and how long one is renewed at most.
        clock: seconds; handed in by tests.
    """

    def __init__(self, settings: QueueSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._since: dict[UUID, tuple[QueuedMessage, float, float]] = {}

    def add(self, message: QueuedMessage) -> None:
        """A handler begins."""
        now = self._clock()
        self._since[message.id] = (message, now, now)

    def remove(self, message: QueuedMessage) -> None:
        """It has ended."""
        self._since.pop(message.id, None)

    def due(self) -> list[list[QueuedMessage]]:
        """Whose lease is to be renewed now, by customer."""
        now = self._clock()
        found: dict[UUID, list[QueuedMessage]] = {}
        for message, begun, renewed in self._since.values():
            # Those that have just begun are looked at the next time.
            if now - renewed >= self._settings.lease_seconds / 3 * 0.9 and (
                now - begun < self._settings.max_handling_seconds
            ):
                found.setdefault(message.customer_id, []).append(message)
        return list(found.values())

    def renewed(self, asked: Sequence[QueuedMessage], found: set[UUID]) -> list[QueuedMessage]:
        """Note whose lease was renewed; returns those whose lease is lost and whose handler is still at work."""
        now = self._clock()
        lost = []
        for message in asked:
            if message.id not in self._since:
                continue
            if message.id in found:
                self._since[message.id] = (message, self._since[message.id][1], now)
            else:
                logger.warning(
                    "the lease of message %s of session %s was lost while it is handled: it will be handled again",
                    message.key, message.session_id,
                )  # fmt: skip
                lost.append(message)
                del self._since[message.id]
        return lost


class Pauses:
    """How long to wait before each further try of a database that went away."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = clock() + seconds
        self._pause = 0.025

    def next(self) -> float | None:
        """Seconds, or None: it has been long enough."""
        if self._clock() >= self._until:
            return None
        self._pause = min(self._pause * 2, 0.5)
        return self._pause


class Throttle:
    """Lets one wake-up of each database through in 50 ms: a worker that was woken looks once more after 100."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def may(self, database: str) -> bool:
        """Whether to wake somebody now."""
        now = self._clock()
        if now - self._last.get(database, -1.0) < 0.05:
            return False
        self._last[database] = now
        return True


def known_error(sqlstate: str | None, said: str) -> Exception | None:
    """A driver's error that the queue itself can explain."""
    if sqlstate == "23503" and "message_queue_customer_id_fkey" in said:
        return NoSuchCustomer("there is no customer with this id, so nothing was queued: is customer_id right?")
    if sqlstate == "55P03":
        return SessionBusy(
            "another transaction has been writing to this session for more than 10 s, and messages are taken in one "
            "order: it has to commit first; nothing was changed, try again"
        )
    return None
