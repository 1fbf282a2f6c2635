"""What a site repeats on most of its pages, kept between crawls so that each reads the site alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Engine


def load_site_blocks(engine: Engine, customer_id: UUID | str, domain: str) -> frozenset[int] | None:
    """Hashes of the site's repeated blocks; None where nobody has learned them yet."""
    with engine.connect() as connection:
        blocks = connection.scalar(
            text("""
                SELECT blocks FROM omniops_meta.site_blocks
                WHERE customer_id = :customer_id AND domain = :domain
            """),
            {"customer_id": customer_id, "domain": domain},
        )
    return None if blocks is None else frozenset(blocks)


def keep_site_blocks(
    engine: Engine, customer_id: UUID | str, domain: str, blocks: frozenset[int], pages: int
) -> frozenset[int]:
    """Keep what was learned, unless another worker was quicker; returns what is in force for all of them.

    Args:
        engine: the permanent tier.
        customer_id: whose site.
        domain: the site.
        blocks: hashes of repeated blocks.
        pages: how many pages they were learned from.
    """
    row = {"customer_id": customer_id, "domain": domain}
    with engine.begin() as connection:
        kept = connection.scalar(
            text("""
                INSERT INTO omniops_meta.site_blocks AS s (customer_id, domain, pages, blocks)
                VALUES (:customer_id, :domain, :pages, CAST(:blocks AS bigint[]))
                ON CONFLICT (customer_id, domain) DO UPDATE SET pages = s.pages
                RETURNING blocks
            """),
            {**row, "pages": pages, "blocks": sorted(blocks)},
        )
    return frozenset(kept or ())


def replace_site_blocks(
    engine: Engine, customer_id: UUID | str, domain: str, blocks: frozenset[int], pages: int
) -> frozenset[int]:
    """Put what was learned anew in the place of what is kept: the site has a new face. Gives what is in force now."""
    with engine.begin() as connection:
        connection.execute(
            text("""
                UPDATE omniops_meta.site_blocks
                SET blocks = CAST(:blocks AS bigint[]), pages = :pages, learned_at = now()
                WHERE customer_id = :customer_id AND domain = :domain
            """),
            {"customer_id": customer_id, "domain": domain, "pages": pages, "blocks": sorted(blocks)},
        )
    return blocks
