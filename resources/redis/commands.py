"""Operations as data: what to send to Redis, and what does the same in memory.

Both clients, the one that waits and the asynchronous one, run these. Each write carries the time to live of its key's
pattern, in the same atomic step where it takes two of Redis's commands.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from resources.redis.keys import Key, as_key, plain_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resources.redis.memory import MemoryStore

T = TypeVar("T")

# Of the system, so that forked processes do not draw the same.
_chance = random.SystemRandom()


@dataclass(frozen=True)
class Script:
    """A Lua script, which Redis knows by its hash once it has seen it."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        """Redis's own name for it."""
        object.__setattr__(self, "sha", hashlib.sha1(self.source.encode()).hexdigest())  # noqa: S324 - Redis's choice


@dataclass(frozen=True, slots=True)
class Command(Generic[T]):
    """One operation.

    Attributes:
        calls: Redis's commands for it, in order.
        keys: what it touches.
        in_memory: the same on the store in memory.
        read: makes the result of Redis's answers.
        writes: whether it changes something.
        atomic: its calls must stand in one transaction.
        script: its one call is EVALSHA of this.
        answered: told of what Redis answered.
        handed_over: what it changes in memory is told to Redis on the way back, and not deleted there.
        large: its answer may be large: taking long says nothing about the server.
    """

    calls: tuple[tuple[Any, ...], ...]
    keys: tuple[Key, ...]
    in_memory: Callable[[MemoryStore], T]
    read: Callable[[list[Any]], T]
    writes: bool = False
    atomic: bool = False
    script: Script | None = None
    answered: Callable[[MemoryStore, T], None] | None = None
    handed_over: bool = False
    large: bool = False


def _first(answers: list[Any]) -> Any:
    return answers[0]


def _whether(answers: list[Any]) -> bool:
    return bool(answers[0])


def get(name: str) -> Command[bytes | None]:
    """The value of a string."""
    key = as_key(name)
    return Command((("GET", key),), (key,), lambda memory: memory.get(key), _first)


def get_with_life(name: str) -> Command[tuple[bytes | None, float]]:
    """The value of a string and the seconds that it has left (0 where that is not known)."""
    key = as_key(name)
    return Command(
        (("GET", key), ("PTTL", key)),
        (key,),
        lambda memory: (memory.get(key), max(0, memory.pttl(key)) / 1_000),
        lambda answers: (answers[0], max(0, answers[1]) / 1_000),
    )


def mget(names: Iterable[str]) -> Command[list[bytes | None]]:
    """The values of several strings."""
    keys = tuple(map(as_key, names))
    return Command((("MGET", *keys),), keys, lambda memory: [memory.get(key) for key in keys], _first)


def set_(name: str, value: Any, seconds: int | None = None, *, only_new: bool = False) -> Command[bool]:
    """Write a string; False if `only_new` and it is there."""
    key = as_key(name)
    life = with_jitter(key, seconds)
    content = plain_bytes(value)
    words = ("SET", key, content, "PX", int(life * 1_000), *(("NX",) if only_new else ()))
    return Command(
        (words,), (key,), lambda memory: memory.set(key, content, life, only_new=only_new), _whether, writes=True
    )


_REPLACE = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
""")


def replace(name: str, old: bytes, value: Any, seconds: int | None = None) -> Command[bool]:
    """Write a string if it still is `old`."""
    key = as_key(name)
    life = with_jitter(key, seconds)
    content = plain_bytes(value)
    return Command(
        (("EVALSHA", _REPLACE.sha, 1, key, old, content, int(life * 1_000)),),
        (key,),
        lambda memory: memory.replace(key, old, content, life),
        _whether,
        writes=True,
        script=_REPLACE,
    )


def delete(names: Iterable[str]) -> Command[int]:
    """Remove keys; how many there were."""
    keys = tuple(map(as_key, names))
    return Command((("UNLINK", *keys),), keys, lambda memory: memory.delete(keys), _first, writes=True)


def expire(name: str, seconds: int) -> Command[bool]:
    """Let a key live for so many seconds from now; False if there is none."""
    key = as_key(name)
    life = key.pattern.life(seconds)
    return Command((("EXPIRE", key, life),), (key,), lambda memory: memory.expire(key, life), _whether, writes=True)


def exists(name: str) -> Command[bool]:
    """Whether a key is there."""
    key = as_key(name)
    return Command((("EXISTS", key),), (key,), lambda memory: memory.exists(key), _whether)


def ttl(name: str) -> Command[int]:
    """Seconds that a key has left, rounded up; -2 if there is none."""
    key = as_key(name)

    def seconds(left_ms: int) -> int:
        return left_ms if left_ms < 0 else -(-left_ms // 1_000)

    return Command(
        (("PTTL", key),), (key,), lambda memory: seconds(memory.pttl(key)), lambda answers: seconds(answers[0])
    )


def increment(name: str, by: int = 1, seconds: int | None = None) -> Command[int]:
    """Add to a number; a new one gets a time to live, which further additions leave as it is."""
    key = as_key(name)
    life = key.pattern.life(seconds)
    return Command(
        # Not EXPIRE … NX, which Redis 6 does not know.
        (("SET", key, 0, "EX", life, "NX"), ("INCRBY", key, by)),
        (key,),
        lambda memory: memory.increment(key, by, life),
        lambda answers: int(answers[1]),
        writes=True,
        atomic=True,
    )


def push(name: str, values: Iterable[Any], seconds: int | None = None) -> Command[int]:
    """Append to a list, whose time to live begins again; its length."""
    key = as_key(name)
    life = key.pattern.life(seconds)
    items = tuple(map(plain_bytes, values))
    return Command(
        (("RPUSH", key, *items), ("EXPIRE", key, life)),
        (key,),
        lambda memory: memory.push(key, items, life),
        _first,
        writes=True,
        atomic=True,
        large=True,
    )


def range_(name: str, start: int = 0, end: int = -1) -> Command[list[bytes]]:
    """Part of a list, both ends included."""
    key = as_key(name)
    return Command(
        (("LRANGE", key, start, end),), (key,), lambda memory: memory.range(key, start, end), _first, large=True
    )


def with_jitter(key: Key, seconds: int | None) -> float:
    """The life of a write, less what its pattern leaves to chance."""
    life = key.pattern.life(seconds)
    return max(1.0, life * (1 - key.pattern.jitter * _chance.random()))
