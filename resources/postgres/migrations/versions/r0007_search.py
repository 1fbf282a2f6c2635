"""Search: several embedding models side by side, what is not embedded yet, full text for one tenant by its index.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from resources.postgres.migrations import run_functions, run_sql_file

revision = "0007"
down_revision: str | None = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns, indexes, working tables, functions. Grants are the catalogue's (`resources.postgres.access`)."""
    run_sql_file("0007_search_tables.sql")
    run_sql_file("0007_search_functions.sql")


def downgrade() -> None:
    """Drop them. Vectors of other widths than the first model's go: their column cannot hold them any more."""
    run_sql_file("0007_search_down.sql")
    run_functions("0001_crawl_functions.sql", ["index_website_content"])
