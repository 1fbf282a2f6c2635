"""The tables that a crawl needs, with the statistics trigger and the batch commit.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

from resources.postgres.migrations import run_sql_file

revision = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create tables, functions and triggers."""
    run_sql_file("0001_crawl_tables.sql")
    run_sql_file("0001_crawl_functions.sql")


def downgrade() -> None:
    """Drop all of it."""
    run_sql_file("0001_crawl_down.sql")
