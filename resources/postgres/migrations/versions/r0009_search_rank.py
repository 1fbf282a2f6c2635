"""Search: full text ranks a bounded number of pages, whatever the word.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

from resources.postgres.migrations import run_functions, run_sql_file

revision = "0009"
down_revision: str | None = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace the function."""
    run_sql_file("0009_search_rank.sql")


def downgrade() -> None:
    """Put the one of before back."""
    run_functions("0007_search_functions.sql", ["search_pages"], replace=True)
