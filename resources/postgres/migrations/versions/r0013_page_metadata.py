"""What pages say of their publication; hashes that stay with the text that is kept; gaps in what pages said.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

from resources.postgres.migrations import run_functions, run_sql_file

revision = "0013"
down_revision: str | None = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns, and replace the functions that write pages."""
    run_sql_file("0013_page_metadata.sql")


def downgrade() -> None:
    """Drop the columns, and put the functions of before back."""
    run_sql_file("0013_page_metadata_down.sql")
    run_functions("0005_crawl_incremental_functions.sql", ["crawl_commit_batch"])
    run_functions("0007_search_functions.sql", ["scraped_pages_retitled"], replace=True)
    run_functions("0010_content_history_functions.sql", ["keep_page_version"], replace=True)
