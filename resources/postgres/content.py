"""What pages say: the part of the permanent tier that search reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Engine


def storable(value: str | None) -> str | None:
    """Text that Postgres can hold. The reader of a page cleans and counts; this is the boundary's last word."""
    if value is None or (value.isascii() and "\x00" not in value):
        return value
    return value.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def index_waiting_content(engine: Engine, max_pages: int) -> int:
    """Make the full-text vectors of up to `max_pages` texts that wait for them, in one transaction.

    Several programs may do so at once; each takes other pages.

    Returns:
        How many pages were indexed; fewer than `max_pages` means that no more are waiting.
    """
    with engine.begin() as connection:
        return int(connection.scalar(text("SELECT index_website_content(:n)"), {"n": max_pages}) or 0)
