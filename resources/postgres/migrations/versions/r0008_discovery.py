"""Discovery: what became of a job's sitemaps, and how many urls were met and not fetched, by reason.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from resources.postgres.migrations import run_sql_file

revision = "0008"
down_revision: str | None = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and the index."""
    run_sql_file("0008_discovery.sql")


def downgrade() -> None:
    """Drop them."""
    run_sql_file("0008_discovery_down.sql")
