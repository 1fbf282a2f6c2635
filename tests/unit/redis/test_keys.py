"""Names, lives and forms of keys."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.redis.keys import (
    CONTENT_HASH,
    CRAWL_JOB,
    CRAWL_RESULTS,
    CRON,
    KEY_PATTERNS,
    RATE,
    RATE_DELAY,
    SEARCH,
    Encoding,
    UnknownKey,
    ValueTooLarge,
    as_key,
    content_hash_key,
    pattern_of,
    search_key,
    tenant_prefixes,
)

ACME, GLOBEX = uuid.UUID(int=1), uuid.UUID(int=2)

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


def test_the_keys_of_the_specification_have_their_lives() -> None:
    assert {pattern.pattern: pattern.ttl_seconds for pattern in KEY_PATTERNS} == {
        "crawl:job:{job_id}": 3_600,
        "crawl:results:{job_id}": 86_400,
        "rate:{domain}": 60,
        "rate:delay:{domain}": 300,
        "content:hash:{hash}": 86_400,
        "search:{query}": 300,
        "cron:{name}": 86_400,
    }


@pytest.mark.parametrize("pattern", KEY_PATTERNS, ids=lambda pattern: pattern.pattern)
def test_a_key_is_known_by_its_name(pattern: Any) -> None:
    key = pattern.key("x:y")
    assert key.pattern is pattern_of(str(key)) is pattern
    assert as_key(str(key)) == key
    assert pattern_of(pattern.prefix) is None


def test_a_longer_pattern_goes_before_a_shorter_one() -> None:
    assert pattern_of("rate:delay:shop.example") is RATE_DELAY
    assert pattern_of("rate:shop.example:8080") is RATE


@pytest.mark.parametrize("name", ["", "x", "rate", "rate:", "search", "sessions:1", "crawl:other:1", " rate:x"])
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(UnknownKey, match=r"resources/redis/keys\.py.*crawl:job:\{job_id\}"):
        as_key(name)


@pytest.mark.parametrize("field", ["", "x" * 513, "ä" * 257])
def test_a_field_is_no_name_if_it_is_empty_or_endless(field: str) -> None:
    with pytest.raises(UnknownKey, match="1 to 512 bytes"):
        CRAWL_JOB.key(field)


@given(_JSON)
def test_json_comes_back_as_it_was(value: Any) -> None:
    for pattern in (CRAWL_JOB, CRAWL_RESULTS):
        assert pattern.decode(pattern.encode(value)) == value


def test_times_and_uuids_have_their_usual_forms_and_other_things_none() -> None:
    moment = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    stored = CRAWL_JOB.encode({"id": ACME, "at": moment, "day": moment.date()})
    assert CRAWL_JOB.decode(stored) == {"id": str(ACME), "at": "2026-01-02T00:00:00+00:00", "day": "2026-01-02"}
    with pytest.raises(TypeError, match="object has no JSON form"):
        CRAWL_JOB.encode(object())


def test_half_a_surrogate_does_not_stop_a_write() -> None:
    assert CRAWL_JOB.decode(CRAWL_JOB.encode("a\ud800b")) == "a\ud800b"
    assert CONTENT_HASH.encode("https://x/\ud800") == b"https://x/?"


def test_long_values_are_compressed_where_their_pattern_says_so_and_short_ones_are_not() -> None:
    text = "Opening hours are from nine to five. " * 200
    assert len(CRAWL_RESULTS.encode(text)) < 500
    assert CRAWL_RESULTS.encode("short") == b'"short"'
    assert len(CRAWL_JOB.encode(text)) > len(text)
    assert CRAWL_RESULTS.decode(CRAWL_RESULTS.encode(text)) == text


def test_a_value_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueTooLarge, match=r"2,049 bytes is too large for content:hash:\{hash\}: 2,048"):
        CONTENT_HASH.encode("x" * 2_049)


def test_what_unpacks_without_end_is_damaged() -> None:
    import zlib

    bomb = zlib.compress(b" " * (65 * 2**20), 9)
    assert len(bomb) < 100_000
    for stored in (bomb, bomb[:-10], b"\x78rubbish"):
        with pytest.raises(ValueError, match="damaged"):
            SEARCH.decode(stored)


def test_a_plain_value_is_bytes_text_or_a_number() -> None:
    assert [CONTENT_HASH.encode(v) for v in (b"a", "ä", 7, 1.5)] == [b"a", "ä".encode(), b"7", b"1.5"]
    assert RATE_DELAY.encoding is Encoding.PLAIN
    for value in (None, True, [], {}):
        with pytest.raises(TypeError):
            CONTENT_HASH.encode(value)


def test_a_life_is_the_patterns_or_a_shorter_one() -> None:
    assert (CRON.life(None), CRON.life(60)) == (86_400, 60)
    assert (SEARCH.life(None), SEARCH.life(86_400)) == (300, 86_400)
    for pattern, seconds in ((CRON, 0), (CRON, 86_401), (CRAWL_JOB, 3_601), (SEARCH, 86_401), (CRON, -1)):
        with pytest.raises(ValueError, match="lives 1 to"):
            pattern.life(seconds)


def test_customers_never_share_a_key_and_all_of_a_customers_can_be_found() -> None:
    for make in (content_hash_key, lambda customer, part: search_key(customer, part, 10)):
        acme, globex = make(ACME, "same"), make(GLOBEX, "same")
        assert acme != globex
        assert acme == make(str(ACME), "same")
        assert acme != make(ACME, "other")
        assert any(acme.startswith(prefix) for prefix in tenant_prefixes(ACME))
        assert not any(acme.startswith(prefix) for prefix in tenant_prefixes(GLOBEX))


def test_parts_of_a_question_do_not_run_into_each_other() -> None:
    assert search_key(ACME, "a", "b") != search_key(ACME, "ab")
    assert search_key(ACME, "a b", 1) != search_key(ACME, "a", "b 1")
    assert search_key(ACME, "opening hours", 5) != search_key(ACME, "opening hours", 10)
