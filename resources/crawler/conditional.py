"""Asking only for what has changed: validators of pages that are known, their links, their sitemap's dates.

What a server sends as ETag and Last-Modified is sent back as it came, where it can be a validator at all. A server
that answers "not modified" to everything is believed by an incremental crawl; a full crawl asks without conditions,
and finds out.
"""

from __future__ import annotations

import re
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from resources.crawler.page import Page
    from resources.postgres.known_pages import KnownPage

MAX_ETAG: Final = 512
"""Characters; a longer one is not kept. Real ones have at most some dozens."""
MAX_PACKED_LINKS: Final = 16 * 1024
"""Bytes; the links of a page with more are not kept, and it is fetched whole each time."""
_MAX_UNPACKED: Final = 4 * 2**20
# As the standard has it, or without quotes, which some servers send and compare. Never a bare `*`, which any page is.
_ETAG: Final = re.compile(r'(?:W/)?"[!#-~]+"|(?!\*$|W/)[!#-+\--~]+').fullmatch
_MAX_DATE: Final = 64


def usable_etag(value: str | None) -> str | None:
    """An ETag that can be sent back; None for nonsense."""
    if value is None or len(value) > MAX_ETAG:
        return None
    value = value.strip()
    return value if _ETAG(value) else None


def usable_date(value: str | None, now: datetime | None = None) -> str | None:
    """A Last-Modified that can be sent back; None for what is no date, or lies ahead."""
    if value is None or len(value) > _MAX_DATE or not value.isascii():
        return None
    value = value.strip()
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return value if when <= (now or datetime.now(UTC)) + timedelta(days=1) else None


def conditions(known: KnownPage | None, *, keep_text: bool) -> dict[str, str]:
    """Request headers that ask whether a page has changed; none where it has to be fetched whole.

    Args:
        known: what is known of it.
        keep_text: its text is wanted; it may not be there.
    """
    if known is None or known.links is None or (keep_text and not known.has_content):
        return {}
    headers = {}
    if known.etag:
        headers["If-None-Match"] = known.etag
    if known.last_modified:
        headers["If-Modified-Since"] = known.last_modified
    return headers


def is_unchanged_by_sitemap(
    lastmod: datetime | None, known: KnownPage | None, *, keep_text: bool, now: datetime | None = None
) -> bool:
    """True if a page need not be asked for: its sitemap's date is older than the last visit.

    Many sitemaps are wrong, so a page that is due by its own interval is asked for all the same.
    """
    if lastmod is None or known is None or known.links is None or (keep_text and not known.has_content):
        return False
    if (lastmod.hour, lastmod.minute, lastmod.second) == (0, 0, 0):
        lastmod += timedelta(days=1)  # a day without a time: it may have changed at its end
    return lastmod < known.last_seen_at and (now or datetime.now(UTC)) < known.next_check_at


def source_hash(page: Page) -> str:
    """Hash of all that is read of a page in the fetch loop: while it is the same, nothing else is done with the page.

    Nonces, session ids in scripts and the order of attributes are not in it.
    """
    parts = (page.content_hash, page.title, page.description, page.canonical_url, page.lang, *page.links)
    return blake2b("\0".join([part or "" for part in parts]).encode("utf-8", "replace"), digest_size=16).hexdigest()


def pack_links(urls: Sequence[str]) -> bytes | None:
    """Links as they are kept; None if they are too many."""
    packed = zlib.compress("\n".join(urls).encode(), 1)
    return packed if len(packed) <= MAX_PACKED_LINKS else None


def unpack_links(packed: bytes | None) -> list[str]:
    """Links as they were found."""
    if not packed:
        return []
    text = zlib.decompressobj().decompress(packed, _MAX_UNPACKED).decode("utf-8", "replace")
    return text.split("\n") if text else []


def validators(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """ETag and Last-Modified of an answer, where they can be sent back."""
    return usable_etag(headers.get("ETag")), usable_date(headers.get("Last-Modified"))
