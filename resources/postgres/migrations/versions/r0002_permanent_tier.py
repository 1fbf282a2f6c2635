"""The rest of the permanent tier: tables, retention functions, tenancy.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from resources.postgres.migrations import run_sql_file

revision = "0002"
down_revision: str | None = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create tables, indexes and functions. Policies and grants are the catalogue's (`resources.postgres.access`)."""
    run_sql_file("0002_permanent_tier_extension.sql")
    run_sql_file("0002_permanent_tier_tables.sql")
    run_sql_file("0002_permanent_tier_functions.sql")


def downgrade() -> None:
    """Drop all of it, with its rows."""
    run_sql_file("0002_permanent_tier_down.sql")
