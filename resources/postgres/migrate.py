"""Migrations: bring a database to this code's schema, under a lock, in one transaction.

Alembic keeps the revisions (`migrations/versions`); its version table stands in `omniops_meta`, so that `public`
holds only the tables of the catalogue. Dagster's storage stands in schema `dagster` of the same database.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from resources.postgres.connection import DatabaseError, connect_once, role_of
from resources.postgres.migrations import run_script

if TYPE_CHECKING:
    from sqlalchemy import Connection

META_SCHEMA = "omniops_meta"
DAGSTER_SCHEMA = "dagster"

# One number for "migrating this database", known to every version of this code.
_MIGRATION_LOCK = 0x6F6D6E69


@dataclass(frozen=True, slots=True)
class MigrationState:
    """Where a database stands.

    Attributes:
        current: revision applied, or None for an empty database.
        head: newest revision that this code knows.
        pending: revisions still to be applied, oldest first.
        known: False if `current` is not one of this code's revisions (the database is newer).
    """

    current: str | None
    head: str
    pending: tuple[str, ...]
    known: bool

    @property
    def up_to_date(self) -> bool:
        """True if nothing is to be done."""
        return self.current == self.head


class SchemaNewerThanCode(DatabaseError):
    """The database was migrated by a newer version of this code."""


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def _state(connection: Connection) -> MigrationState:
    script = ScriptDirectory.from_config(_config())
    head = script.get_current_head()
    if head is None:
        msg = "no migration was found beside resources/postgres/migrate.py: is the installation whole?"
        raise DatabaseError(msg)
    context = MigrationContext.configure(connection, opts={"version_table_schema": META_SCHEMA})
    current = context.get_current_revision()
    ordered = [revision.revision for revision in script.walk_revisions()][::-1]
    if current is None:
        return MigrationState(None, head, tuple(ordered), known=True)
    if current not in ordered:
        return MigrationState(current, head, (), known=False)
    return MigrationState(current, head, tuple(ordered[ordered.index(current) + 1 :]), known=True)


def migration_state(url: str) -> MigrationState:
    """Read where the database at `url` stands.

    Raises:
        DatabaseError: it cannot be reached.
    """
    with connect_once(url) as connection:
        return _state(connection)


def migrate(owner_url: str, *, runtime_url: str | None = None) -> MigrationState:
    """Apply what is pending, all of it or nothing, and let the runtime role in.

    Two migrations at once wait for each other. The schemas for Alembic and for Dagster's storage are made where
    they are missing.

    Args:
        owner_url: the role that owns the schema.
        runtime_url: the role that runs the program; where it is another one, it is granted what it needs.

    Returns:
        The state *before* the migration: `pending` is what was applied.

    Raises:
        DatabaseError: it cannot be reached.
        SchemaNewerThanCode: it stands at a revision that this code does not know.
    """
    with connect_once(owner_url) as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        for schema in (META_SCHEMA, DAGSTER_SCHEMA):
            # Asked first: IF NOT EXISTS still wants the right to create.
            if not connection.scalar(text("SELECT to_regnamespace(:name) IS NOT NULL"), {"name": schema}):
                connection.execute(text(f"CREATE SCHEMA {schema}"))
        before = _state(connection)
        if not before.known:
            msg = (
                f"the database stands at revision {before.current}, which this version does not know "
                f"(its newest is {before.head}): update omniops_pipelines"
            )
            raise SchemaNewerThanCode(msg)
        if before.pending:
            command.upgrade(_config(connection), "head")
        if runtime_url is not None and role_of(runtime_url) not in (None, role_of(owner_url)):
            _grant_runtime(connection, role_of(runtime_url) or "")
        connection.commit()
    return before


def _grant_runtime(connection: Connection, role: str) -> None:
    """Give the runtime role the use of the tables, and nothing of their definition."""
    grants = (Path(__file__).parent / "sql" / "grant_runtime.sql").read_text(encoding="utf-8")
    connection.execute(text("SELECT set_config('omniops.runtime_role', :role, true)"), {"role": role})
    run_script(connection, grants)
