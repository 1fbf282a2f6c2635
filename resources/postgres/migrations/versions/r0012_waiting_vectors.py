"""Vectors of pages that are not embedded whole yet are kept.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

from resources.postgres.migrations import run_sql_file

revision = "0012"
down_revision: str | None = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a table beside the business tables."""
    run_sql_file("0012_waiting_vectors.sql")


def downgrade() -> None:
    """Drop it: what waits there is embedded again."""
    run_sql_file("0012_waiting_vectors_down.sql")
