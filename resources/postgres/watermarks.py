"""How far something has come: a named moment, from which whoever goes on looks further."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection


def read_watermark(connection: Connection, name: str) -> datetime:
    """Where it stands; asked for the first time it begins now. Its row is locked until the transaction ends.

    Args:
        connection: as the service, in a transaction that is committed.
        name: of what goes on from there.
    """
    at: datetime = connection.execute(
        text("""
            INSERT INTO omniops_meta.watermarks AS w (name) VALUES (:name)
            ON CONFLICT (name) DO UPDATE SET name = w.name RETURNING at
        """),
        {"name": name},
    ).scalar_one()
    return at


def advance_watermark(connection: Connection, name: str, at: datetime) -> None:
    """Move it forward; it never goes back."""
    connection.execute(
        text("UPDATE omniops_meta.watermarks SET at = greatest(at, :at) WHERE name = :name"), {"name": name, "at": at}
    )
