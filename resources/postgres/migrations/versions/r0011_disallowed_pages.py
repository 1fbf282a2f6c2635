"""Pages that robots.txt forbids by now are removed at a crawl's end.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

from resources.postgres.migrations import run_functions, run_sql_file

revision = "0011"
down_revision: str | None = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Know the reason, and replace the function that decides."""
    run_sql_file("0011_disallowed_pages.sql")


def downgrade() -> None:
    """Put the one of before back; pages that were removed for this reason stay removed, as `noindex`."""
    run_sql_file("0011_disallowed_pages_down.sql")
    run_functions("0005_crawl_incremental_functions.sql", ["crawl_settle_pages"], replace=True)
