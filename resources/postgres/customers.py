"""Customers: found by slug, made on first use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Connection

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class InvalidSlug(ValueError):
    """A customer's slug is not one."""


def check_slug(slug: str) -> str:
    """Return the slug.

    Raises:
        InvalidSlug: it is not 1 to 63 lower-case letters, digits and inner hyphens.
    """
    if not _SLUG.fullmatch(slug):
        msg = (
            f"customer {slug!r} is not a slug: use 1 to 63 lower-case letters, digits and hyphens, "
            "with a letter or digit at both ends, for example acme-shop"
        )
        raise InvalidSlug(msg)
    return slug


def find_customer(connection: Connection, slug: str) -> UUID | None:
    """The id of the customer with this slug, or None."""
    found: UUID | None = connection.scalar(
        text("SELECT id FROM customers WHERE slug = :slug"), {"slug": check_slug(slug)}
    )
    return found


def ensure_customer(connection: Connection, slug: str) -> UUID:
    """The id of the customer with this slug, who is made on first use; two callers at once get the same one."""
    found = find_customer(connection, slug)
    if found is not None:
        return found
    connection.execute(
        text("INSERT INTO customers (name, slug) VALUES (:name, :slug) ON CONFLICT (slug) DO NOTHING"),
        {"name": slug.replace("-", " ").title(), "slug": slug},
    )
    made = find_customer(connection, slug)
    if made is None:  # pragma: no cover - would need the row to vanish between two statements
        msg = f"customer {slug!r} was made and is not there: another program removed it at this moment"
        raise RuntimeError(msg)
    return made
