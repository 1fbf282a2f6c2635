"""Search: several embedding models side by side, what is not embedded yet, full text for one tenant by its index.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from resources.postgres.migrations import run_functions, run_sql_file

revision = "0006"
down_revision: str | None = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns, indexes, working tables, functions. Grants are the catalogue's (`resources.postgres.access`)."""
    run_sql_file("0006_search_tables.sql")
    run_sql_file("0006_search_functions.sql")


def downgrade() -> None:
    """Drop them. Vectors of other widths than the first model's go: their column cannot hold them any more."""
    run_sql_file("0006_search_down.sql")
    run_functions("0001_crawl_functions.sql", ["index_website_content"])
