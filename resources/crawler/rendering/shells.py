"""Which documents are empty shells that scripts fill, told by the document alone; and what rendering has gained.

A wrong "yes" costs some seconds of a browser, a wrong "no" costs the page's text, so the signs are read generously,
and a part of a site where rendering gained nothing again and again is left alone.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from resources.crawler.page import parse_in_turns
from resources.crawler.urls import site_of

__all__ = ["PatternMemory", "is_shell", "visible_characters"]

LITTLE_TEXT: Final = 250
"""Characters; a page of a website says more than that about its navigation alone."""
SOME_TEXT: Final = 1_500
TRIALS: Final = 4
"""Pages of a pattern that are rendered in vain before the others are left alone."""
_AGAIN_EVERY: Final = 50
_MAX_PATTERNS: Final = 2_000
_LOOKED_AT: Final = 512 * 1024

# Whatever the bytes are, a sign is looked for in linear time: tags have bounded lengths, and blocks are split first.
_SCRIPT: Final = re.compile(rb"<script\b", re.I).search
_BUNDLE: Final = re.compile(rb"<script\b[^>]{0,300}?\bsrc\s{0,9}=", re.I).search
_EMPTY_ROOT: Final = re.compile(
    rb"<(div|main|section)\b[^>]{0,200}?\bid\s{0,9}=\s{0,9}[\"']?"
    rb"(?:root|app|__next|__nuxt|___gatsby|q-app|react-root|application|app-root|mount|svelte|main|page|container)"
    rb"[\"']?(?:\s[^>]{0,200})?>(?:\s{0,99}|<!--[^>]{0,200}-->){0,3}</\1>"
    rb"|<([a-z][a-z0-9]{0,30}-[a-z0-9-]{1,30})(?:\s[^>]{0,200})?>(?:\s{0,99}|<!--[^>]{0,200}-->){0,3}</\2>",
    re.I,
).search
_NOSCRIPT: Final = re.compile(rb"<noscript\b", re.I).split
_NOSCRIPT_END: Final = re.compile(rb"</noscript\b", re.I).split
_SAYS_JAVASCRIPT: Final = re.compile(rb"java\s?script", re.I).search
_SAYS_NEEDED: Final = re.compile(
    rb"enabl|requir|need|without|turn(?:ed)? o|support|disabled|aktivier|activ|habilit|ben\xc3\xb6tig", re.I
).search
_MAX_NOSCRIPTS: Final = 20
_NOSCRIPT_BYTES: Final = 4_000


def _without_noscript(body: bytes) -> bytes:
    first, *others = _NOSCRIPT(body)
    return first + b"".join(b"".join(_NOSCRIPT_END(other, maxsplit=1)[1:]) for other in others)


def _asks_for_scripts(body: bytes) -> bool:
    """True if what is for readers without scripts says that they need them."""
    for block in _NOSCRIPT(body, maxsplit=_MAX_NOSCRIPTS)[1:]:
        said = _NOSCRIPT_END(block[:_NOSCRIPT_BYTES], maxsplit=1)[0]
        if _SAYS_JAVASCRIPT(said) and _SAYS_NEEDED(said):
            return True
    return False


async def visible_characters(body: bytes, url: str, charset: str | None) -> int:
    """How much a reader would see of a document whose scripts do not run."""
    page = await parse_in_turns(_without_noscript(body[:_LOOKED_AT]), url, "text/html", charset)
    return len(page.text)


async def is_shell(body: bytes, url: str, charset: str | None = None) -> bool:
    """Say whether a document waits for scripts to fill it.

    Args:
        body: of a text/html answer.
        url: where it was.
        charset: of its Content-Type header.
    """
    head = body[:_LOOKED_AT]
    if not _SCRIPT(head):
        return False
    empty_root, asks = _EMPTY_ROOT(head) is not None, _asks_for_scripts(head)
    if not (empty_root or asks or _BUNDLE(head)):
        return False
    characters = await visible_characters(body, url, charset)
    if characters < LITTLE_TEXT:
        return True
    return empty_root and asks and characters < SOME_TEXT


@dataclass(slots=True)
class _Record:
    tried: int = 0
    helped: int = 0
    passed: int = 0


class PatternMemory:
    """What rendering has gained, by the part of the site that a url belongs to."""

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[str, str, int], _Record] = OrderedDict()

    def _record(self, url: str) -> _Record:
        first, *rest = urlsplit(url).path.strip("/").split("/")
        key = (site_of(url), first if rest else "", min(len(rest), 5))
        record = self._records.setdefault(key, _Record())
        self._records.move_to_end(key)
        if len(self._records) > _MAX_PATTERNS:
            self._records.popitem(last=False)
        return record

    def worth(self, url: str) -> bool:
        """False where rendering pages like this one gained nothing; asked for again now and then."""
        record = self._record(url)
        if record.helped or record.tried < TRIALS:
            return True
        record.passed += 1
        return record.passed % _AGAIN_EVERY == 0

    def learn(self, url: str, before: int, after: int) -> None:
        """Take what a page gained, in visible characters."""
        record = self._record(url)
        record.tried += 1
        if after >= before + 100:
            record.helped += 1
