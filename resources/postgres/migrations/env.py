"""Alembic's entry point. The connection, its lock and its transaction are `resources.postgres.migrate`'s."""

from __future__ import annotations

from alembic import context

from resources.postgres.migrate import META_SCHEMA

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    version_table="alembic_version",
    version_table_schema=META_SCHEMA,
    transaction_per_migration=False,
    on_version_apply=context.config.attributes.get("on_version_apply"),
)
context.run_migrations()
