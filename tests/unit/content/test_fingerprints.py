"""What counts as a change of a page, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.content.fingerprints import fingerprint, simhash, similar

PAGE = " ".join(f"This is sentence number {n} about the espresso machine and its care." for n in range(60))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Last updated: 2026-11-24", "Last updated: 2026-11-28"),
        ("Last updated on 24 November 2026 at 12:31", "Last updated on 3 December 2026 at 09:02"),
        ("Page generated 2026-11-24T12:31:05Z", "Page generated 2026-11-25T00:00:00Z"),
        ("Stand: 24.11.2026", "Stand: 28.11.2026"),
        ("© 2025 Acme", "© 2026 Acme"),
        ("Copyright 2001-2025", "Copyright 2001-2026"),
        ("posted 3 minutes ago", "posted 2 hours ago"),
        ("vor 5 Minuten", "vor 2 Stunden"),
        ("1,234 views", "1,301 views"),
        ("build 9f86d081884c7d65", "build 60303ae22b998861"),
        ("request 123e4567-e89b-12d3-a456-426614174000", "request 00000000-e89b-12d3-a456-426614174fff"),
    ],
)
def test_what_is_overlooked(before: str, after: str) -> None:
    one, other = fingerprint(f"{PAGE} {before} {PAGE}"), fingerprint(f"{PAGE} {after} {PAGE}")
    assert one.content_hash != other.content_hash
    assert one.folded_hash == other.folded_hash


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("It costs 19 euros", "It costs 29 euros"),
        ("Price: $1,234", "Price: $1,235"),
        ("open from 9:00 to 17:00", "open from 9:00 to 18:00"),
        ("The course begins on 2026-11-24", "The course begins on 2026-12-01"),
        ("Version 3.11.2", "Version 3.11.3"),
        ("in stock", "sold out"),
        ("call 030 1234567", "call 030 1234568"),
        ("delivered in 3 days", "delivered in 5 days"),
        ("article 4012345678901234", "article 4012345678901235"),
        ("10 reviews", "11 reviews"),
        ("Ein Absatz", "Ein absatz"),
    ],
)
def test_what_is_a_fact(before: str, after: str) -> None:
    one, other = fingerprint(f"{PAGE} {before} {PAGE}"), fingerprint(f"{PAGE} {after} {PAGE}")
    assert one.folded_hash != other.folded_hash


def test_spaces_and_forms_of_a_character_make_no_difference() -> None:
    assert fingerprint("Café  au\nlait ") == fingerprint("Cafe\u0301 au lait")


def test_similar_pages_are_near_and_others_are_not() -> None:
    changed = PAGE.replace("sentence number 30", "passage numbered thirty")
    other = " ".join(f"Invoice {n} was paid by card on the counter of the shop." for n in range(60))
    assert similar(simhash(PAGE), simhash(changed))
    assert not similar(simhash(PAGE), simhash(other))
    assert simhash("") == 0


@given(st.text())
def test_any_text_has_a_fingerprint_that_fits_the_database(text: str) -> None:
    found = fingerprint(text)
    assert -(2**63) <= found.simhash < 2**63
    assert len(found.content_hash) == len(found.folded_hash) == 32
    assert fingerprint(text) == found
