"""Incremental crawls: what is remembered of a page, and what becomes of pages that are not found any more.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from resources.postgres.migrations import run_sql_file

revision = "0005"
down_revision: str | None = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns, links of pages, and the functions that write them."""
    run_sql_file("0005_crawl_incremental_tables.sql")
    run_sql_file("0005_crawl_incremental_functions.sql")


def downgrade() -> None:
    """Drop them; pages stay, and are read again by the next crawl."""
    run_sql_file("0005_crawl_incremental_down.sql")
