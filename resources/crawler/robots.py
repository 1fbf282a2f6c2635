"""What a site allows us: robots.txt by RFC 9309, for our own name, and the X-Robots-Tag header.

What belongs here: reading the rules. What does not: waiting (the politeness of the crawl) and the robots meta
tags of a page (`page`).
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from protego import Protego

from resources.crawler.identity import ROBOTS_TOKEN
from resources.crawler.urls import InvalidUrl, normalise, origin_of

if TYPE_CHECKING:
    from resources.crawler.client import Fetched, GuardedHttpClient

__all__ = ["MAX_CRAWL_DELAY", "MAX_ROBOTS_BYTES", "RobotsPolicy", "fetch_policy"]

MAX_ROBOTS_BYTES: Final = 500 * 1024
"""RFC 9309, 2.5: at least 500 KiB are parsed; the rest of a longer file is ignored."""
MAX_ROBOTS_REDIRECTS: Final = 5
"""RFC 9309, 2.3.1.2: at least five are followed, to other hosts too."""
MAX_CRAWL_DELAY: Final = 60.0
"""Seconds. A longer delay would make a crawl of an hour end after a few dozen pages, with no word of why."""
MAX_WILDCARDS: Final = 32 * 1024
"""Characters of all different rules with wildcards: each is looked for in each url, and 500 KiB of them take half a
second. Hundreds of rules have room."""
_MAX_SITEMAPS: Final = 500
_IN_TURN: Final = 32 * 1024
"""Bytes; reading a longer file takes up to half a second, in which the crawl's loop goes on."""
_MAX_LINE: Final = 2_000
"""Characters of one line; a rule is a path, and longer ones are mistakes or attacks."""

# Protego forgives misspelled directives, so this does too: "is there anything that could forbid a url?"
_FORBIDS: Final = re.compile(r"^[ \t]*di[a-z]{0,4}l[a-z]{0,3}w\b[ \t]*:?[ \t]*[^\s#:]", re.I | re.M).search

_WILDCARD_RULE: Final = re.compile(r"^[ \t]*(?!user)[a-z][a-z \t-]*:([^\n#]*\*[^\n#]*)", re.I | re.M)

# Protego debug-logs each malformed line, which a hostile file can have by the thousand.
logging.getLogger("protego").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class RobotsPolicy:
    """What robots.txt of one origin says to us."""

    crawl_delay: float | None = None
    """Seconds between two requests, 0 to 60; None where nothing usable is said."""
    sitemaps: tuple[str, ...] = ()
    """Normal urls, in order, each once. They may be on other hosts."""
    reason: str | None = None
    """Why the rules are not those of a file: "robots.txt answered 503"."""
    disallows_all: bool = False
    """Nothing may be fetched, because the file could not be read."""
    _rules: Protego | None = None

    @classmethod
    def allow_all(cls, reason: str | None = None) -> RobotsPolicy:
        """Everything may be fetched."""
        return cls(reason=reason)

    @classmethod
    def disallow_all(cls, reason: str) -> RobotsPolicy:
        """Nothing may be fetched, for a reason that a person can read."""
        return cls(reason=reason, disallows_all=True)

    @classmethod
    def parse(cls, body: bytes, url: str) -> RobotsPolicy:
        """Read a robots.txt.

        Args:
            body: The file; not UTF-8 is read as far as it is.
            url: Where it is, for sitemaps that are relative urls.
        """
        text = body.decode("utf-8-sig", "replace")
        if len(text) > _MAX_LINE:
            text = "\n".join(line for line in text.splitlines() if len(line) <= _MAX_LINE)
        if sum(map(len, {match[1] for match in _WILDCARD_RULE.finditer(text)})) > MAX_WILDCARDS:
            # To leave some out could be to fetch what they forbid.
            return cls.disallow_all(f"robots.txt has more than {MAX_WILDCARDS:,} characters of rules with wildcards")
        rules = Protego.parse(text)
        delay = rules.crawl_delay(ROBOTS_TOKEN)
        sitemaps: dict[str, None] = {}
        for sitemap in rules.sitemaps:
            if len(sitemaps) >= _MAX_SITEMAPS:
                break
            try:
                sitemaps[normalise(sitemap, url)] = None
            except InvalidUrl:
                continue
        return cls(
            # Protego has dropped what is negative, infinite or no number.
            crawl_delay=None if delay is None else min(float(delay), MAX_CRAWL_DELAY),
            sitemaps=tuple(sitemaps),
            _rules=rules if _FORBIDS(text) else None,
        )

    def allowed(self, url: str) -> bool:
        """Say whether we may fetch a normal url of this origin."""
        if self._rules is None:
            return not self.disallows_all
        return self._rules.can_fetch(url, ROBOTS_TOKEN)


async def fetch_policy(client: GuardedHttpClient, origin: str) -> tuple[RobotsPolicy, Fetched]:
    """Fetch the robots.txt of an origin, by RFC 9309 (2.3.1).

    Args:
        client: Guarded, so the file's redirects are checked like any other.
        origin: Any normal url of the origin.

    Returns:
        The rules of a 2xx answer, whatever its type. A 4xx answer, or more redirects than are followed,
        allows everything; a 5xx answer, and no answer for whatever reason, forbids everything. `reason` says
        so. With them the answer, which says whether another try could end otherwise. Never raises but for
        cancellation.
    """
    url = origin_of(origin) + "/robots.txt"
    fetched = await client.fetch(
        url,
        any_type=True,
        max_bytes=MAX_ROBOTS_BYTES,
        truncate=True,
        max_redirects=MAX_ROBOTS_REDIRECTS,
    )
    if len(fetched.body) > _IN_TURN:
        return await asyncio.to_thread(_policy_of, fetched), fetched
    return _policy_of(fetched), fetched


def _policy_of(fetched: Fetched) -> RobotsPolicy:
    if fetched.error in ("too_many_redirects", "redirect_loop", "redirect_invalid"):
        return RobotsPolicy.allow_all(f"robots.txt redirects without end ({fetched.error})")
    if fetched.error is not None:
        detail = fetched.error.replace("_", " ")
        return RobotsPolicy.disallow_all(f"robots.txt could not be read: {detail} ({fetched.error_detail})")
    status = fetched.status or 0
    if 200 <= status < 300:
        body = fetched.body
        if len(body) >= MAX_ROBOTS_BYTES:
            # The last line may be cut: "Disallow: /" of "Disallow: /private" is another rule.
            body = body[: body.rfind(b"\n") + 1]
        return RobotsPolicy.parse(body, fetched.final_url)
    if 300 <= status < 500:
        return RobotsPolicy.allow_all(f"robots.txt answered {status}")
    return RobotsPolicy.disallow_all(f"robots.txt answered {status}")
