"""Whether a page still says what it said: an exact hash, one that overlooks what does not matter, one that is similar
where texts are.

A difference is overlooked only where it cannot be a fact: when a page was generated or updated, the year beside a
copyright sign, how long ago something was, how often it was viewed, random tokens. Prices, dates of events and hours
of opening are facts, however small their share of a page is.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Knuth's multiplicative constant for 64 bits: 2**64 divided by the golden ratio, made odd.
_FACTOR: Final = 0x9E3779B97F4A7C15
# What follows tells the same: simhash of the first 50,000 words.
_MAX_WORDS: Final = 50_000
_MAX_KNOWN_CHARACTERS: Final = 1_000_000
MAX_CHARACTERS: Final = 256 * 1024
"""What is behind counts as it is written, and not for similarity: hundreds of pages of a book."""
NEAR_DUPLICATE_BITS: Final = 6
"""Texts whose simhashes differ in no more bits say nearly the same."""

_WORDS: Final = re.compile(r"\w+").findall
_MONTH: Final = (
    r"(?:jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez|janv|févr|mars|avr|juin|juil|août|déc|ene|abr|"
    r"ago|dic|gen|mag|giu|lug|set|ott)[\w.]*"
)
_DATE: Final = (
    rf"(?:\d{{4}}-\d\d?-\d\d?|\d\d?[./]\d\d?[./]\d{{2,4}}|\d\d?\.?\s+(?:de\s+)?{_MONTH}\s+(?:de\s+)?\d{{4}}|"
    rf"{_MONTH}\s+\d\d?(?:st|nd|rd|th)?,?\s+\d{{4}})"
)
_TIME: Final = (
    r"(?:[T,]?\s*(?:at|um|à|a las)?\s*\d\d?:\d\d(?::\d\d)?(?:\.\d+)?\s*(?:[ap]\.?m\.?|uhr|utc|gmt|z|[+-]\d\d:?\d\d)?)"
)
_UPDATED: Final = (
    "updated", "modified", "generated", "built", "rendered", "retrieved", "accessed", "refreshed", "aktualisiert",
    "geändert", "erzeugt", "stand", "modifié", "actualizado", "aggiornato",
)  # fmt: skip
# Each with words of which one must be there, in lower case: most pages have none, and looking for a word is quick.
_OVERLOOKED: Final = tuple(
    (tuple(words), re.compile(pattern, re.IGNORECASE))
    for words, pattern in (
        # Last updated on 24 November 2026 at 12:31; Page generated 2026-11-24T12:31Z; Stand: 24.11.2026.
        (_UPDATED, rf"\b(?:{'|'.join(_UPDATED)})\b[\s:]*(?:on|at|am|le|el|il)?[\s:]*{_DATE}{_TIME}?"),
        (("©", "(c)", "copyright"), r"(?:©|\(c\)|\bcopyright)\s*(?:\d{4}\s*[-\u2013]\s*)?\d{4}"),
        ((" ago",), r"\b(?:\d+|an?|one|a few)\s+(?:second|minute|hour|day|week|month|year)s?\s+ago\b"),
        (("vor ",), r"\bvor\s+(?:\d+|einer?|einem)\s+(?:sekunde|minute|stunde|tag|woche|monat|jahr)\w*"),
        (("il y a ",), r"\bil y a\s+(?:\d+|une?)\s+\w+"),
        (("hace ",), r"\bhace\s+(?:\d+|una?)\s+\w+"),
        (
            ("view", "visit", "readers", "likes", "shares", "aufrufe", "besucher", "vues"),
            r"\b[\d.,]+[km]?\s*(?:views?|visits?|visitors?|readers?|likes?|shares?|aufrufe|besucher|vues)\b",
        ),
        # Tokens: uuids, and at least 16 hexadecimal digits with both letters and figures.
        (("-",), r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"),
    )
)
_LONG_HEX: Final = re.compile(r"[0-9a-fA-F]{16,}")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of a text.

    Attributes:
        content_hash: BLAKE2b-128 of the text, hexadecimal: spaces and forms of the same character make no difference.
        folded_hash: the same without what is overlooked; equal where a change is cosmetic.
        simhash: 64 bits as a signed number; similar texts differ in few of them (`similar`). 0 for no text.
    """

    content_hash: str
    folded_hash: str
    simhash: int


def normalised(text: str) -> str:
    """The text in Unicode's composed form, with single spaces."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def fingerprint(text: str) -> Fingerprint:
    """The fingerprint of a page's main text."""
    text, rest = text[:MAX_CHARACTERS], text[MAX_CHARACTERS:]
    plain = normalised(text)
    return Fingerprint(_hash(plain + rest), _hash(_folded(plain) + rest), simhash(plain))


def _folded(text: str) -> str:
    """The text without what is overlooked."""
    lower = text.lower()
    for words, pattern in _OVERLOOKED:
        if any(word in lower for word in words):
            text = pattern.sub("", text)
    return _LONG_HEX.sub(lambda token: token[0] if token[0].isdigit() or token[0].isalpha() else "", text)


def _hash(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def simhash(text: str) -> int:
    """Charikar's simhash of the text's pairs of words, each counted once: single words lose the order, longer runs
    make every small change a large one.

    Source: M. Charikar, Similarity estimation techniques from rounding algorithms, STOC 2002.
    """
    import numpy as np  # noqa: PLC0415 - it takes a command longer to load than all the rest of this

    words = _WORDS(text.lower())[:_MAX_WORDS]
    if not words:
        return 0
    hashes = _word_hashes(words)
    # An odd factor, so that "a b" and "b a" are two pairs.
    pairs = np.sort(hashes[:-1] * np.uint64(_FACTOR) ^ hashes[1:]) if len(words) > 1 else hashes
    # Sorted and compared: `np.unique` takes ten times as long.
    first = np.ones(len(pairs), dtype=bool)
    np.not_equal(pairs[1:], pairs[:-1], out=first[1:])
    pairs = pairs[first]
    bits = np.unpackbits(pairs.view(np.uint8).reshape(-1, 8), axis=1)
    majority = bits.sum(axis=0, dtype=np.uint32) * 2 > len(pairs)
    return int.from_bytes(np.packbits(majority).tobytes(), "big", signed=True)


class _Words(dict[str, int]):
    """Numbers of words, and the words' hashes by number. The pages of a site have most of their words in common."""

    def __init__(self) -> None:
        super().__init__()
        self.hashes = array("Q")
        self.characters = 0

    def __missing__(self, word: str) -> int:
        self.characters += len(word)
        self.hashes.append(int.from_bytes(blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "big"))
        number = self[word] = len(self.hashes) - 1
        return number


_local: Final = threading.local()


def _word_hashes(words: list[str]) -> NDArray[np.uint64]:
    """64 bits of each word."""
    import numpy as np  # noqa: PLC0415 - as in `simhash`

    known: _Words | None = getattr(_local, "words", None)
    if known is None or known.characters > _MAX_KNOWN_CHARACTERS:
        known = _local.words = _Words()
    numbers = np.fromiter(map(known.__getitem__, words), dtype=np.int32, count=len(words))
    return np.frombuffer(known.hashes, dtype=np.uint64)[numbers]


def similar(one: int, other: int) -> bool:
    """Whether two simhashes are of texts that say nearly the same."""
    return ((one ^ other) & (2**64 - 1)).bit_count() <= NEAR_DUPLICATE_BITS
