"""The message queue: claims, leases and acknowledgements as functions, and an index that holds open messages only.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from resources.postgres.migrations import run_sql_file

revision = "0004"
down_revision: str | None = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns, indexes and functions. Grants are the catalogue's (`resources.postgres.access`)."""
    run_sql_file("0004_message_queue_table.sql")
    run_sql_file("0004_message_queue_functions.sql")


def downgrade() -> None:
    """Drop them; messages stay."""
    run_sql_file("0004_message_queue_down.sql")
