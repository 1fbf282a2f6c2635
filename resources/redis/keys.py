"""Key patterns of the ephemeral tier: what each is called, how long it lives and how its value is written.

This is the only way to a key. The clients take keys that a pattern here made, or names that one matches, and give
each write the pattern's time to live; a name that no pattern knows is refused before anything is sent.

Whose a key is: a job's keys are its customer's, by the job's id, which is unique among all customers. What is made of
a customer's content (`content:hash:`, `search:`) has the customer inside the hash that is the key's field (see
`tenant_field`): nobody comes to another customer's key by having the same content or asking the same question. Rate
limits belong to a domain and protect it from all customers together.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterable

_DAY = 24 * 3600
# A field longer than this is no name but a mistake; a job's id has up to 200 bytes.
_MAX_FIELD_BYTES = 512

# Compression: measured on batches of 100 page results with 6 KB of text each. Level 1 leaves two fifths at 0.05 ms a
# page, beside 0.02 ms for the JSON itself; level 6 takes four times as long for a fifth less. Msgpack would save a
# part of the 0.02 ms and cost a dependency. Below a kilobyte the round trip costs more than the bytes.
_COMPRESS_FROM_BYTES = 1_024
_ZLIB_LEVEL = 1
# A zlib stream begins with this byte, and no JSON does.
_ZLIB_MARK = b"\x78"
# What a stored value may grow to when it is read: a damaged one shall not fill the memory.
_MAX_DECODED_BYTES = 64 * 2**20


class UnknownKey(ValueError):
    """A name that no pattern matches."""


class ValueTooLarge(ValueError):
    """A value that is larger than its pattern allows."""


class Encoding(Enum):
    """How a value becomes bytes.

    Attributes:
        PLAIN: text, bytes or a number, as it is.
        JSON: JSON in ASCII, with times in ISO 8601 and plain uuids.
        COMPRESSED_JSON: the same, compressed with zlib from a kilobyte on.
    """

    PLAIN = "plain"
    JSON = "json"
    COMPRESSED_JSON = "compressed json"


class Key(str):
    """The name of a key, and the pattern that made it."""

    __slots__ = ("pattern",)

    pattern: KeyPattern

    def __new__(cls, name: str, pattern: KeyPattern) -> Key:
        """Made by `KeyPattern.key`."""
        key = super().__new__(cls, name)
        key.pattern = pattern
        return key


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """One kind of key.

    Attributes:
        pattern: with the field in braces, as the documentation writes it.
        ttl_seconds: life of a key after its last write.
        holds: what stands in it.
        encoding: how a value becomes bytes.
        longest_seconds: a write may ask for up to so long a life; 0: `ttl_seconds` is the longest.
        jitter: so large a part of a life is left out by chance, so that what was written together does not end
            together.
        max_bytes: a larger value, encoded, is not kept.
        counts: it limits something: forgetting it would make the limit laxer, so it is handed over between Redis and
            the memory store and never just dropped.
        of_tenant: its field is made by `tenant_field`.
    """

    pattern: str
    ttl_seconds: int
    holds: str
    encoding: Encoding = Encoding.JSON
    longest_seconds: int = 0
    jitter: float = 0.0
    max_bytes: int = 2**20
    counts: bool = False
    of_tenant: bool = False

    @property
    def prefix(self) -> str:
        """What every key of this pattern begins with."""
        return self.pattern.partition("{")[0]

    def key(self, value: str) -> Key:
        """The key for a value of the pattern's field.

        Raises:
            UnknownKey: the value is empty or too long for a name.
        """
        if not 0 < len(value.encode("utf-8", "replace")) <= _MAX_FIELD_BYTES:
            msg = f"{self.pattern} needs a field of 1 to {_MAX_FIELD_BYTES} bytes, not {value[:40]!r}"
            raise UnknownKey(msg)
        return Key(self.prefix + value + self.pattern.partition("}")[2], self)

    def life(self, seconds: int | None) -> int:
        """The time to live of a write, in seconds.

        Args:
            seconds: what the write asks for; None: the pattern's own.

        Raises:
            ValueError: it is not between 1 second and the pattern's longest.
        """
        longest = max(self.ttl_seconds, self.longest_seconds)
        if seconds is None:
            return self.ttl_seconds
        if not 1 <= seconds <= longest:
            msg = f"{self.pattern} lives 1 to {longest} s, not {seconds} s"
            raise ValueError(msg)
        return seconds

    def encode(self, value: Any) -> bytes:
        """The value as it stands in Redis.

        Raises:
            TypeError: it has no such form.
            ValueTooLarge: it is larger than `max_bytes`.
        """
        if self.encoding is Encoding.PLAIN:
            encoded = plain_bytes(value)
        else:
            # In ASCII: twice as fast, nearly as small when compressed, and half a surrogate is no error.
            encoded = json.dumps(value, default=_as_json, separators=(",", ":")).encode()
            if self.encoding is Encoding.COMPRESSED_JSON and len(encoded) >= _COMPRESS_FROM_BYTES:
                encoded = zlib.compress(encoded, _ZLIB_LEVEL)
        if len(encoded) > self.max_bytes:
            msg = f"a value of {len(encoded):,} bytes is too large for {self.pattern}: {self.max_bytes:,} at most"
            raise ValueTooLarge(msg)
        return encoded

    def decode(self, stored: bytes) -> Any:
        """The value that was encoded: bytes as they are for a plain one.

        Raises:
            ValueError: what stands there was not written by `encode`.
        """
        if self.encoding is Encoding.PLAIN:
            return stored
        if stored.startswith(_ZLIB_MARK):
            stream = zlib.decompressobj()
            try:
                stored = stream.decompress(stored, _MAX_DECODED_BYTES)
            except zlib.error as error:
                msg = f"a value of {self.pattern} is damaged: {error}"
                raise ValueError(msg) from error
            if not stream.eof:
                msg = f"a value of {self.pattern} is damaged: it does not end within {_MAX_DECODED_BYTES:,} bytes"
                raise ValueError(msg)
        return json.loads(stored)


def plain_bytes(value: Any) -> bytes:
    """Text, bytes or a number as bytes.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value).encode()
    msg = f"a key holds bytes, text or a number, not {type(value).__name__}: encode it by its pattern"
    raise TypeError(msg)


def _as_json(value: object) -> str:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    msg = f"{type(value).__name__} has no JSON form"
    raise TypeError(msg)


CRAWL_JOB = KeyPattern("crawl:job:{job_id}", 3600, "job metadata")
CRAWL_RESULTS = KeyPattern(
    "crawl:results:{job_id}",
    _DAY,
    "a job's cached page results",
    encoding=Encoding.COMPRESSED_JSON,
    max_bytes=4 * 2**20,
)
RATE = KeyPattern(
    "rate:{domain}", 60, "request counter: the last minute's requests, by second", Encoding.PLAIN, counts=True
)
RATE_DELAY = KeyPattern(
    "rate:delay:{domain}", 300, "adaptive delay between two requests, in seconds", Encoding.PLAIN, counts=True
)
CONTENT_HASH = KeyPattern(
    "content:hash:{hash}",
    _DAY,
    "content hash, with the customer in it → the url that had it first",
    encoding=Encoding.PLAIN,
    max_bytes=2_048,
    of_tenant=True,
)
SEARCH = KeyPattern(
    "search:{query}",
    300,
    "a customer's search results, by customer and question; lives as OMNIOPS_SEARCH_CACHE_SECONDS says",
    encoding=Encoding.COMPRESSED_JSON,
    longest_seconds=_DAY,
    jitter=0.1,
    of_tenant=True,
)
CRON = KeyPattern("cron:{name}", _DAY, "state of a scheduled operation")

KEY_PATTERNS = (CRAWL_JOB, CRAWL_RESULTS, RATE, RATE_DELAY, CONTENT_HASH, SEARCH, CRON)

# rate:delay: before rate:, which it begins with.
_BY_PREFIX = tuple(sorted(KEY_PATTERNS, key=lambda pattern: len(pattern.prefix), reverse=True))


def pattern_of(name: str) -> KeyPattern | None:
    """The pattern that a key's name matches, if there is one."""
    found = next((pattern for pattern in _BY_PREFIX if name.startswith(pattern.prefix)), None)
    return found if found is not None and len(name) > len(found.prefix) else None


def as_key(name: str) -> Key:
    """A name as a key.

    Raises:
        UnknownKey: no pattern matches it.
    """
    if isinstance(name, Key):
        return name
    pattern = pattern_of(name)
    if pattern is None:
        msg = (
            f"no pattern knows the key {name[:80]!r}: keys are made by the patterns in resources/redis/keys.py "
            f"({', '.join(p.pattern for p in KEY_PATTERNS)}), and a new kind of key is added there"
        )
        raise UnknownKey(msg)
    return pattern.key(name[len(pattern.prefix) :])


def tenant_field(customer_id: UUID | str, *parts: object) -> str:
    """The field of a customer's key: a hash of the customer, then one of the customer and all parts.

    The second, of 128 bits, is what keeps customers apart. The first lets a customer's keys be found when the
    customer is erased.

    Args:
        customer_id: whose it is.
        parts: what the key stands for: a content hash; a question with its limit and model.
    """
    customer = str(customer_id)
    whole = hashlib.blake2b(json.dumps([customer, *map(str, parts)]).encode(), digest_size=16)
    return tenant_prefix(customer) + whole.hexdigest()


def tenant_prefix(customer_id: UUID | str) -> str:
    """What the fields of all of a customer's keys begin with."""
    return hashlib.blake2b(str(customer_id).encode(), digest_size=8).hexdigest()


def content_hash_key(customer_id: UUID | str, content_hash: str) -> Key:
    """The key for a content hash of this customer's."""
    return CONTENT_HASH.key(tenant_field(customer_id, content_hash))


def search_key(customer_id: UUID | str, *question: object) -> Key:
    """The key for a customer's question: the query and all that its answer depends on (limit, model, site)."""
    return SEARCH.key(tenant_field(customer_id, *question))


def tenant_prefixes(customer_id: UUID | str) -> Iterable[str]:
    """What the names of a customer's keys begin with, but for those of jobs."""
    field = tenant_prefix(customer_id)
    return tuple(pattern.prefix + field for pattern in KEY_PATTERNS if pattern.of_tenant)
