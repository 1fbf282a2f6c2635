"""What pages said before, what sites repeat, and the HTML that pages were read from.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

from resources.postgres.migrations import run_sql_file

revision = "0010"
down_revision: str | None = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add tables beside the business tables, and the trigger that keeps versions."""
    run_sql_file("0010_content_history_tables.sql")
    run_sql_file("0010_content_history_functions.sql")


def downgrade() -> None:
    """Drop them: versions and kept HTML are lost, pages stay."""
    run_sql_file("0010_content_history_down.sql")
