"""Pages of a site that say nearly the same, by the simhashes that stand with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from resources.content.fingerprints import NEAR_DUPLICATE_BITS

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Connection

# Of one site. Each is compared with each: a second for so many.
MAX_PAGES: Final = 20_000


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Pages of one site that say nearly the same.

    Attributes:
        domain: the site.
        urls: of the pages, the one that was seen first in front.
    """

    domain: str
    urls: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {"domain": self.domain, "urls": list(self.urls)}


_PAGES: Final = """
    SELECT p.url, p.simhash FROM scraped_pages AS p
    WHERE p.customer_id = :customer_id AND p.domain = :domain AND p.removed_at IS NULL AND p.simhash <> 0
    ORDER BY p.first_seen_at, p.id LIMIT :limit
"""


def near_duplicates(
    connection: Connection, customer_id: UUID | str, domain: str | None = None
) -> list[NearDuplicates]:
    """Groups of two and more pages that say nearly the same, the largest first; of each site its oldest 20,000 pages.

    Args:
        connection: as the service.
        customer_id: whose pages.
        domain: one site's alone.
    """
    sites = connection.scalars(
        text("""SELECT DISTINCT domain FROM scraped_pages
                WHERE customer_id = :customer_id AND (CAST(:domain AS text) IS NULL OR domain = :domain)"""),
        {"customer_id": customer_id, "domain": domain},
    ).all()
    found = []
    for site in sites:
        rows = connection.execute(
            text(_PAGES), {"customer_id": customer_id, "domain": site, "limit": MAX_PAGES}
        ).all()
        groups = _alike([row.simhash for row in rows])
        found += [NearDuplicates(site, tuple(rows[number].url for number in group)) for group in groups]
    return sorted(found, key=lambda group: (-len(group.urls), group.domain, group.urls))


def _alike(simhashes: list[int]) -> list[list[int]]:
    """Numbers of those that are near to the first of their group."""
    import numpy as np  # noqa: PLC0415 - it takes a command longer to load than all the rest of this

    hashes = np.array(simhashes, dtype=np.int64).view(np.uint64)
    free = np.ones(len(hashes), dtype=bool)
    groups = []
    for number in range(len(hashes)):
        if free[number]:
            near = free & (np.bitwise_count(hashes ^ hashes[number]) <= NEAR_DUPLICATE_BITS)
            free &= ~near
            if near.sum() > 1:
                groups.append([int(one) for one in np.flatnonzero(near)])
    return groups
