"""The store that stands in for Redis: the same answers, within its bounds."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.redis.memory import MemoryStore


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(max_entries=10, max_bytes=10_000, clock=clock)


def test_a_value_ends_with_its_life(store: MemoryStore, clock: Clock) -> None:
    store.set("k", b"1", 10)
    store.push("l", [b"1"], 10)
    clock.now = 9.5
    assert (store.get("k"), store.range("l", 0, -1), store.pttl("k")) == (b"1", [b"1"], 500)
    clock.now = 10.0
    assert (store.get("k"), store.range("l", 0, -1), store.pttl("k"), store.exists("k")) == (None, [], -2, False)
    assert store.delete(["k", "l"]) == 0
    assert store.set("k", b"2", 10, only_new=True)


def test_a_list_begins_to_live_again_with_each_addition_and_a_number_does_not(
    store: MemoryStore, clock: Clock
) -> None:
    store.push("l", [b"1"], 10)
    store.increment("n", 1, 10)
    clock.now = 8.0
    store.push("l", [b"2"], 10)
    store.increment("n", 1, 10)
    assert (store.pttl("l"), store.pttl("n")) == (10_000, 2_000)
    clock.now = 10.0
    assert store.increment("n", 1, 10) == 1


def test_what_was_used_longest_ago_goes_first(store: MemoryStore) -> None:
    for n in range(10):
        store.set(str(n), b"x", 100)
    store.get("0")
    store.set("new", b"x", 100)
    assert (store.get("0"), store.get("1"), len(store)) == (b"x", None, 10)


def test_bytes_are_bounded_and_one_that_is_too_large_drives_nobody_out(store: MemoryStore) -> None:
    store.set("small", b"x", 100)
    store.set("large", b"x" * 20_000, 100)
    assert (store.get("small"), store.get("large")) == (b"x", None)
    for n in range(9):
        store.set(str(n), b"x" * 3_000, 100)
    assert store.size <= 10_000
    assert store.get("8") is not None


def test_a_list_that_grows_too_long_is_given_up(store: MemoryStore) -> None:
    for _ in range(100):
        store.push("l", [b"x" * 200], 100)
        assert store.size <= 10_000
    store.clear()
    assert (store.size, len(store)) == (0, 0)


@pytest.mark.parametrize("kind", ["string", "list"])
def test_a_key_of_another_kind_is_overwritten_by_a_write_and_missing_for_a_read(
    store: MemoryStore, kind: str
) -> None:
    if kind == "list":
        store.push("k", [b"1"], 10)
        assert store.get("k") is None
        assert store.increment("k", 5, 10) == 5
    else:
        store.set("k", b"text", 10)
        assert store.range("k", 0, -1) == []
        assert store.push("k", [b"1"], 10) == 1


def test_a_value_is_replaced_only_while_it_is_what_was_read(store: MemoryStore) -> None:
    store.set("k", b"1", 10)
    assert not store.replace("k", b"0", b"2", 10)
    assert store.replace("k", b"1", b"2", 10)
    assert not store.replace("none", b"1", b"2", 10)
    assert store.get("k") == b"2"


def test_keys_are_removed_by_what_they_begin_with(store: MemoryStore) -> None:
    for key in ("a:1", "a:2", "b:1"):
        store.set(key, b"", 10)
    assert store.delete_prefix("a:") == 2
    assert store.exists("b:1")


def test_threads_lose_no_addition() -> None:
    store = MemoryStore()
    threads = [threading.Thread(target=lambda: [store.increment("n", 1, 60) for _ in range(2_000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("n") == b"16000"


_NAMES = st.sampled_from(["a", "b", "c"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), _NAMES, st.binary(max_size=3), st.booleans()),
        st.tuples(st.just("push"), _NAMES, st.lists(st.binary(max_size=3), min_size=1, max_size=3)),
        st.tuples(st.just("increment"), _NAMES, st.integers(-5, 5)),
        st.tuples(st.just("delete"), _NAMES),
        st.tuples(st.just("range"), _NAMES, st.integers(-5, 5), st.integers(-5, 5)),
        st.tuples(st.just("wait"), st.integers(0, 8)),
    ),
    max_size=60,
)


@given(_STEPS)
def test_it_does_what_a_dictionary_with_ends_does(steps: list[tuple[Any, ...]]) -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    model: dict[str, tuple[Any, float]] = {}
    for verb, *words in steps:
        model = {key: (value, end) for key, (value, end) in model.items() if end > clock.now}
        if verb == "wait":
            clock.now += words[0]
            continue
        key = words[0]
        value, end = model.get(key, (None, 0.0))
        if verb == "set":
            written = not (words[2] and value is not None)
            assert store.set(key, words[1], 10, only_new=words[2]) == written
            if written:
                model[key] = (words[1], clock.now + 10)
        elif verb == "push":
            items = (value if isinstance(value, list) else []) + words[1]
            assert store.push(key, words[1], 10) == len(items)
            model[key] = (items, clock.now + 10)
        elif verb == "increment":
            try:
                number = int(value)
            except (TypeError, ValueError):
                number, end = 0, clock.now + 10
            assert store.increment(key, words[1], 10) == number + words[1]
            model[key] = (b"%d" % (number + words[1]), end)
        elif verb == "delete":
            assert store.delete([key]) == (value is not None)
            model.pop(key, None)
        elif isinstance(value, list):
            start, stop = (n + len(value) if n < 0 else n for n in words[1:])
            assert store.range(key, *words[1:]) == value[max(0, start) : max(0, stop + 1)]
        assert store.get(key) == (model[key][0] if key in model and isinstance(model[key][0], bytes) else None)
    assert len(store) >= sum(end > clock.now for _, end in model.values())
