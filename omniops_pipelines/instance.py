"""Dagster's own home: where it is, and how it reaches its storage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.engine import make_url

from resources import stack
from resources.postgres.access import check_runtime_url
from resources.postgres.connection import DatabaseError, DatabaseNotMigrated, connect_once
from resources.postgres.migrate import DAGSTER_SCHEMA, migrate, migration_state
from resources.settings import Settings

if TYPE_CHECKING:
    from resources.services import Endpoints

DAGSTER_URL_VARIABLE = "OMNIOPS_DAGSTER_DATABASE_URL"

# Dagster writes the materialisations of a run over a range of partitions one by one, unless this says how many make a
# batch: a year's backfill is one statement then. It concerns those events alone; every other event and log line is
# written at once, and is in the UI at once.
EVENT_BATCH_VARIABLE = "DAGSTER_EVENT_BATCH_SIZE"
EVENT_BATCH_SIZE = 1_000
# One "planned" event for each asset of a range run, and not one for each partition: 730 single writes for a year of
# two assets. A range that fails is then not marked in the partitions' grid; it is one transaction, its run is red.
PLANNED_RANGES_VARIABLE = "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS"

# One number for "making Dagster's tables in this database", known to every version of this code.
_STORAGE_LOCK = 0x6F6D6E6A


def dagster_database_url(database_url: str) -> str:
    """The url for Dagster's storage: psycopg2 (with a bare one SQLAlchemy would pick psycopg 3, which Dagster's
    `NOTIFY` statements do not survive), and a schema of its own.
    """
    url = make_url(database_url).set(drivername="postgresql+psycopg2")
    return url.update_query_dict({"options": f"-csearch_path={DAGSTER_SCHEMA}"}).render_as_string(hide_password=False)


def prepare_home(settings: Settings, endpoints: Endpoints) -> Path:
    """Make Dagster's home ready and point this process (and its children) to it.

    A `DAGSTER_HOME` that is set already is somebody's own instance, and is used as it is.
    """
    os.environ[DAGSTER_URL_VARIABLE] = dagster_database_url(endpoints.database_url)
    os.environ.setdefault(EVENT_BATCH_VARIABLE, str(EVENT_BATCH_SIZE))
    os.environ.setdefault(PLANNED_RANGES_VARIABLE, "1")
    if os.environ.get("DAGSTER_HOME"):
        return Path(os.environ["DAGSTER_HOME"])
    home = settings.home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    wanted = (Path(__file__).parent / "dagster.yaml").read_text(encoding="utf-8")
    config = home / "dagster.yaml"
    if not config.exists() or config.read_text(encoding="utf-8") != wanted:
        # Written beside and moved, so that another process never reads half of it.
        draft = home / f".dagster.yaml.{os.getpid()}"
        draft.write_text(wanted, encoding="utf-8")
        draft.replace(config)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def prepare_database(endpoints: Endpoints) -> None:
    """Migrate the embedded database; refuse another one that is not migrated, which is its owner's decision.

    Raises:
        DatabaseError: it cannot be reached, stands at another version, or its role could get around row-level
            security.
    """
    check_runtime_url(endpoints.database_url)
    state = migration_state(endpoints.database_url)
    if not state.known:
        msg = f"the database stands at revision {state.current}, which this version does not know: update it"
        raise DatabaseError(msg)
    if state.up_to_date:
        return
    if not endpoints.embedded_postgres:
        msg = f"the database is not migrated (it needs revision {state.head}): run `omniops migrate`"
        raise DatabaseNotMigrated(msg)
    migrate(endpoints.owner_database_url, runtime_url=endpoints.database_url)


def prepare_storage(endpoints: Endpoints) -> None:
    """Let Dagster make its tables, one process at a time: its own processes would race and warn of it."""
    made = "SELECT to_regclass('dagster.runs') IS NOT NULL AND to_regclass('dagster.job_ticks') IS NOT NULL"
    with connect_once(endpoints.database_url) as connection:
        if connection.scalar(text(made)):
            return
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _STORAGE_LOCK})
        # Imported here: it takes a second, and whoever reads the audit trail does not need it.
        import dagster as dg  # noqa: PLC0415

        with dg.DagsterInstance.get():
            connection.commit()


def open_stack() -> tuple[Settings, Endpoints]:
    """Stores up, database migrated (where embedded), Dagster's home ready."""
    settings = Settings.from_environment()
    endpoints = stack.endpoints(settings)
    prepare_database(endpoints)
    prepare_home(settings, endpoints)
    prepare_storage(endpoints)
    return settings, endpoints
