"""What a page said at a time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection


class UnknownPage(LookupError):
    """The customer has no page of that url, or nothing is known of what it said then."""


@dataclass(frozen=True, slots=True)
class PageVersion:
    """What a page said for a while.

    Attributes:
        url: of the page.
        valid_from: since when, by our visits.
        valid_to: until when (another text, or the page was gone); None: it still says so.
        title, description, canonical_url, language, published_at: of today; older ones are not kept.
        text: plain.
        markdown: None where it was not kept.
    """

    url: str
    valid_from: datetime
    valid_to: datetime | None
    title: str | None
    description: str | None
    canonical_url: str | None
    language: str | None
    published_at: datetime | None
    text: str
    markdown: str | None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


_VERSIONS = """
    SELECT p.url, v.valid_from, v.valid_to, p.title, p.description, p.canonical_url, p.lang, p.published_at,
           v.text, v.markdown
    FROM scraped_pages AS p
    CROSS JOIN LATERAL (
        SELECT w.updated_at AS valid_from, p.removed_at AS valid_to, w.text, w.markdown
        FROM website_content AS w WHERE w.page_id = p.id
        UNION ALL
        SELECT o.valid_from, o.valid_to, o.text, o.markdown
        FROM omniops_meta.page_versions AS o WHERE o.page_id = p.id
    ) AS v
    WHERE p.customer_id = :customer_id AND p.url = :url
"""


def page_versions(connection: Connection, customer_id: UUID | str, url: str) -> list[PageVersion]:
    """All that is known of what a page said, the newest first; at most the present and ten earlier versions.

    Where a version ends before the next one begins the page was away.

    Raises:
        UnknownPage: the customer has no text of such a page.
    """
    rows = connection.execute(
        text(_VERSIONS + " ORDER BY v.valid_from DESC, v.valid_to DESC NULLS FIRST"),
        {"customer_id": customer_id, "url": url},
    ).all()
    if not rows:
        msg = f"there is no text of {url}: it was not crawled for this customer, or without keeping its text"
        raise UnknownPage(msg)
    return [PageVersion(*row) for row in rows]


def page_at(connection: Connection, customer_id: UUID | str, url: str, moment: datetime) -> PageVersion:
    """What a page said at a moment, as far as our visits tell.

    Raises:
        UnknownPage: the page is not known, or was not yet then, or was away, or that version is no longer kept.
    """
    versions = page_versions(connection, customer_id, url)
    for version in versions:
        if version.valid_from <= moment and (version.valid_to is None or moment < version.valid_to):
            return version
    gone = versions[0].valid_to
    if gone is not None and moment >= gone:
        msg = f"{url} was gone by {moment}: a crawl did not find it any more at {gone}"
        raise UnknownPage(msg)
    for newer, older in itertools.pairwise(versions):
        if older.valid_to is not None and older.valid_to <= moment < newer.valid_from:
            msg = (
                f"{url} was away at {moment}: a crawl did not find it any more at {older.valid_to}, and one found it "
                f"again at {newer.valid_from}"
            )
            raise UnknownPage(msg)
    msg = f"nothing is known of what {url} said at {moment}: the oldest version kept is of {versions[-1].valid_from}"
    raise UnknownPage(msg)
