"""Search: one index for a customer's words, names are found by their parts, fewer pages are fetched to be ranked.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

from resources.postgres.migrations import run_functions, run_sql_file

revision = "0014"
down_revision: str | None = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and the index, replace the functions. Texts that there are wait to be indexed anew."""
    run_sql_file("0014_search_names.sql")


def downgrade() -> None:
    """Put those of before back. Texts stay indexed as they are."""
    run_sql_file("0014_search_names_down.sql")
    run_functions("0007_search_functions.sql", ["index_website_content"], replace=True)
    run_functions("0009_search_rank.sql", ["search_pages"], replace=True)
