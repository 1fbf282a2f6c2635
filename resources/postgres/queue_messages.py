"""Queued messages: what may go in, what comes out, and in which words the queue says what it did.

A message has four fields: `type` and `key` (text), `value` (anything that JSON can say) and `timestamp` (a number, a
text, or a datetime with a time zone). Its body is `type` and `value`: two messages with one key and one body are the
same message, whenever each was stamped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn
from uuid import UUID

from resources.postgres.connection import DatabaseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FIELDS: Final = ("type", "key", "value", "timestamp")

# A chat message with a picture in it does not belong here: the queue holds what is on its way.
MAX_MESSAGE_BYTES: Final = 262_144
# The unique index's, with room to spare (revision 0004).
MAX_KEY_BYTES: Final = 512
MAX_SESSION_BYTES: Final = 512
MAX_TYPE_BYTES: Final = 128
MAX_DEPTH: Final = 64
# One transaction, and one statement's parameters.
MAX_BATCH: Final = 10_000
# Of a handler's error, so much is kept.
MAX_ERROR: Final = 4_000


class InvalidMessage(ValueError):
    """A message, or what it is addressed to, cannot be queued; nothing was written."""


class MessageConflict(ValueError):
    """The key belongs to another message already; nothing was written.

    Attributes:
        key: which one.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"message {key!r} is refused: {reason}")
        self.key = key


class NoSuchCustomer(LookupError):
    """There is no customer with this id; nothing was written."""


class SessionBusy(DatabaseError):
    """Another transaction has held a session for too long; nothing was changed."""


class RejectMessage(Exception):
    """Raised by a handler: this message will never succeed, so it is given up at once, with this reason."""


class LeaseLost(RuntimeError):
    """The message's lease ran out, or somebody else has the message: what its handler wrote was rolled back."""


class QueuedMessage(dict[str, Any]):
    """A message as it was given to `enqueue` (a dictionary of the four fields), and what the queue knows of it.

    Attributes:
        id: of its row.
        customer_id, session_id, conversation_id: whose it is.
        position: order of arrival.
        status: `pending`, `processing`, `completed` or `failed`.
        retry_count: tries that failed, or whose lease ran out.
        created_at: of its arrival.
        expires_at: not handled after that.
        available_at: not before then (backoff).
        leased_until: a handler has it until then, unless it renews.
        error_message: of the last failed try.
        lease_token: of whoever has claimed it.
    """

    __slots__ = (
        "available_at", "conversation_id", "created_at", "customer_id", "error_message", "expires_at", "id",
        "lease_token", "leased_until", "position", "retry_count", "session_id", "status",
    )  # fmt: skip

    id: UUID
    customer_id: UUID
    session_id: str
    conversation_id: UUID | None
    position: int
    status: str
    retry_count: int
    created_at: datetime
    expires_at: datetime
    available_at: datetime | None
    leased_until: datetime | None
    error_message: str | None
    lease_token: UUID | None

    def __init__(self, body: Mapping[str, Any], **facts: Any) -> None:
        super().__init__(body)
        for name in self.__slots__:
            setattr(self, name, facts.pop(name, None))
        if facts:
            msg = f"a queued message has no {', '.join(facts)}"
            raise TypeError(msg)

    @property
    def type(self) -> str:
        """What kind of message it is."""
        return str(self["type"])

    @property
    def key(self) -> str:
        """The sender's name for it."""
        return str(self["key"])

    @property
    def value(self) -> Any:
        """What it says."""
        return self["value"]

    @property
    def timestamp(self) -> Any:
        """When the sender made it, in the sender's form."""
        return self["timestamp"]


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A message was taken.

    Attributes:
        key: the sender's.
        id: of its row (or of its place in memory).
        position: order of arrival.
        new: False if it was there already.
        persisted: True if it is in Postgres. Inside the caller's own transaction: as soon as that commits.
        repairs: characters that Postgres cannot hold (NUL, halves of surrogate pairs) and that were taken out or
            replaced.
    """

    key: str
    id: UUID
    position: int
    new: bool
    persisted: bool
    repairs: int = 0


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A message that went to the dead letters (`failed`).

    Attributes:
        key: the sender's.
        reason: why.
    """

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay did, and why it ended.

    Attributes:
        handled: keys of the messages that were handled, in order.
        given_up: messages that went to the dead letters meanwhile.
        blocked_by: key of the message that holds the rest of the session; None if nothing is left.
        reason: `failed` (its handler failed now), `waiting` (for its next try, after an earlier failure), `leased`
            (somebody else has it), `lost` (its lease was lost while it was handled), `limit` (as many were handled
            as were asked for); None if nothing is left.
        error: of the failed try.
        next_try_at: when `blocked_by` can be had, as far as is known.
    """

    handled: tuple[str, ...] = ()
    given_up: tuple[GivenUp, ...] = ()
    blocked_by: str | None = None
    reason: str | None = None
    error: str | None = None
    next_try_at: datetime | None = None

    @property
    def finished(self) -> bool:
        """True if nothing of the session is left."""
        return self.reason is None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "handled": list(self.handled),
            "given_up": [{"key": dead.key, "reason": dead.reason} for dead in self.given_up],
        }


@dataclass(frozen=True, slots=True)
class CheckedMessage:
    """A message that can be queued: plain JSON, cleaned.

    Attributes:
        body: the four fields.
        text: the body as JSON.
        repairs: characters that were taken out or replaced.
    """

    body: dict[str, Any]
    text: str
    repairs: int

    @property
    def key(self) -> str:
        """The sender's name for it."""
        return str(self.body["key"])


def check_message(message: Mapping[str, Any]) -> CheckedMessage:
    """Check a message and bring it to the form that is stored.

    Text in `value` is cleaned of what Postgres cannot hold, and counted: a person's message is not refused for a
    stray character. What names things (`type`, `key`) is refused instead, because two names must not become one.

    Raises:
        InvalidMessage: a field is missing, unknown, of another type, too large, or has no JSON form.
    """
    if not hasattr(message, "keys"):
        msg = f"a message is a dictionary of {', '.join(FIELDS)}, and not {type(message).__name__}"
        raise InvalidMessage(msg)
    missing = [name for name in FIELDS if name not in message]
    unknown = [repr(name) for name in message if name not in FIELDS]
    if missing or unknown:
        problems = [f"{'/'.join(missing)} missing"] if missing else []
        problems += [f"unknown: {', '.join(unknown[:5])}"] if unknown else []
        msg = f"a message has the fields {', '.join(FIELDS)} and no others ({'; '.join(problems)})"
        raise InvalidMessage(msg)
    key = check_name(message["key"], "a message's key", MAX_KEY_BYTES)
    kind = check_name(message["type"], f"the type of message {key!r}", MAX_TYPE_BYTES)
    cleaner = _Cleaner(key)
    body = {
        "type": kind,
        "key": key,
        "value": cleaner.clean(message["value"], 1, "value"),
        "timestamp": cleaner.clean(_timestamp(message["timestamp"], key), 1, "timestamp"),
    }
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        # A whole number of more than 4,300 digits.
        msg = f"message {key!r} has no JSON form: {error}"
        raise InvalidMessage(msg) from error
    size = len(text.encode())
    if size > MAX_MESSAGE_BYTES:
        msg = f"message {key!r} has {size:,} bytes as JSON, and a message has {MAX_MESSAGE_BYTES:,} at most"
        raise InvalidMessage(msg)
    return CheckedMessage(body, text, cleaner.repairs)


class _Cleaner:
    """Makes plain JSON of a value, and counts what it had to repair."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.repairs = 0

    def clean(self, value: Any, depth: int, where: str) -> Any:
        if depth > MAX_DEPTH:
            self._refuse(f"is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            if value - value != 0:  # infinite, or no number
                self._refuse(f"has {value} at {where}, which JSON cannot say")
            return value
        if isinstance(value, list | tuple):
            return [self.clean(item, depth + 1, f"{where}[{n}]") for n, item in enumerate(value)]
        if not isinstance(value, dict):
            self._refuse(f"has a {type(value).__name__} at {where}, which has no JSON form")
        made: dict[str, Any] = {}
        for name, item in value.items():
            if not isinstance(name, str):
                self._refuse(f"has the key {name!r} at {where}; a JSON object's keys are texts")
            cleaned = self._text(name)
            if cleaned in made:
                self._refuse(f"has two keys at {where} that Postgres cannot tell apart ({name!r})")
            made[cleaned] = self.clean(item, depth + 1, f"{where}.{cleaned}")
        return made

    def _text(self, text: str) -> str:
        cleaned, count = _clean(text)
        self.repairs += count
        return cleaned

    def _refuse(self, what: str) -> NoReturn:
        msg = f"message {self._key!r} {what}"
        raise InvalidMessage(msg)


def check_batch(messages: Iterable[Mapping[str, Any]]) -> list[CheckedMessage]:
    """Check messages, one for each key.

    Raises:
        InvalidMessage: as for `check_message`, or there are too many.
        MessageConflict: one key twice, with two bodies.
    """
    checked: dict[str, CheckedMessage] = {}
    for number, message in enumerate(messages):
        if number >= MAX_BATCH:
            msg = f"a batch has {MAX_BATCH:,} messages at most: send it in parts"
            raise InvalidMessage(msg)
        one = check_message(message)
        before = checked.setdefault(one.key, one)
        if before is not one and not same_body(before.body, one.body):
            raise MessageConflict(one.key, "the batch has it twice, with two bodies")
    return list(checked.values())


def same_body(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two messages of one key are the same message, as Postgres compares jsonb."""
    return bool(one["type"] == other["type"] and _same(one["value"], other["value"]))


def check_name(value: object, what: str, limit: int) -> str:
    """A text that names something: not empty, no NUL, no half surrogates, at most so many bytes.

    Raises:
        InvalidMessage: it is none.
    """
    if not isinstance(value, str) or not value:
        msg = f"{what} is a text that is not empty, and not {value!r}"
        raise InvalidMessage(msg)
    if _clean(value)[1]:
        msg = f"{what} ({value!r}) has a NUL or half of a surrogate pair in it, which Postgres cannot hold"
        raise InvalidMessage(msg)
    if len(value.encode()) > limit:
        msg = f"{what} has {len(value.encode()):,} bytes ({value[:40]!r}…), and may have {limit}"
        raise InvalidMessage(msg)
    return value


def check_customer(customer_id: UUID | str) -> UUID:
    """The customer's id.

    Raises:
        InvalidMessage: it is no uuid.
    """
    return _uuid(customer_id, "customer_id")


def check_conversation(conversation_id: UUID | str | None) -> UUID | None:
    """The conversation's id, if there is one.

    Raises:
        InvalidMessage: it is no uuid.
    """
    return None if conversation_id is None else _uuid(conversation_id, "conversation_id")


def describe_failure(error: BaseException) -> str:
    """A handler's error as it is kept: its class and message, bounded, nothing that Postgres cannot hold."""
    said = str(error).strip()
    text, _ = _clean(f"{type(error).__name__}: {said}" if said else type(error).__name__)
    return text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]} …"


def _uuid(value: UUID | str, what: str) -> UUID:
    try:
        return value if isinstance(value, UUID) else UUID(value)
    except (ValueError, AttributeError, TypeError) as error:
        msg = f"{what} {value!r} is not a uuid"
        raise InvalidMessage(msg) from error


def _timestamp(value: object, key: str) -> str | int | float:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            msg = f"message {key!r}: its timestamp has no time zone"
            raise InvalidMessage(msg)
        return value.isoformat()
    if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
        return value
    msg = f"message {key!r}: its timestamp is a number, a text or a datetime, and not {value!r}"
    raise InvalidMessage(msg)


def _clean(text: str) -> tuple[str, int]:
    """The text as Postgres can hold it, and how many characters that took."""
    if text.isascii() and "\0" not in text:
        return text, 0
    nul = text.count("\0")
    text = text.replace("\0", "")
    try:
        text.encode()
    except UnicodeEncodeError:
        # A pair in two halves (as some JSON decoders leave it) becomes the one character that it is.
        halves = sum("\ud800" <= character <= "\udfff" for character in text)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), nul + halves
    return text, nul


def _same(one: Any, other: Any) -> bool:
    # In Python True is 1; in JSON it is not.
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
