"""${message}.

Revision ID: ${up_revision}
Revises: ${down_revision}
"""

from __future__ import annotations

from resources.postgres.migrations import run_sql_file

revision = ${repr(up_revision)}
down_revision: str | None = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """${message}."""
    run_sql_file("${up_revision}_up.sql")


def downgrade() -> None:
    """Undo it."""
    run_sql_file("${up_revision}_down.sql")
