"""A customer with an empty queue, and messages to put into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from resources.postgres.message_queue import PersistentMessageQueue
from resources.settings import QueueSettings

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.databases import Database

# Nothing is waited for: what takes time is shifted in the rows.
STILL = QueueSettings(lease_seconds=3600, max_tries=3, backoff_seconds=3600, notify=False)


def message(key: str, value: Any = "hello", type_: str = "chat") -> dict[str, Any]:
    return {"type": type_, "key": key, "value": value, "timestamp": 1_700_000_000}


def make_customer(database: Database, slug: str = "acme") -> UUID:
    with database.engine.begin() as connection:
        made: UUID = connection.execute(
            text("INSERT INTO customers (name, slug) VALUES (:slug, :slug) RETURNING id"), {"slug": slug}
        ).scalar_one()
    return made


def execute(database: Database, sql: str, **parameters: Any) -> int:
    with database.engine.begin() as connection:
        return connection.execute(text(sql), parameters).rowcount


def pass_backoff(database: Database) -> None:
    """As if the time until each next try had passed."""
    execute(database, "UPDATE message_queue SET available_at = now() WHERE available_at > now()")


def end_leases(database: Database) -> None:
    """As if each handler had died and its lease had run out."""
    execute(
        database, "UPDATE message_queue SET leased_until = now() - interval '1 second' WHERE leased_until > now()"
    )


def expire(database: Database) -> None:
    """As if a day had passed."""
    execute(database, "UPDATE message_queue SET expires_at = now() - interval '1 second'")


def states(database: Database, session: str = "s") -> list[tuple[str, str, int]]:
    """Key, status and tries of a session's messages, in order."""
    rows = database.rows(
        "SELECT message_key, status, retry_count FROM message_queue WHERE session_id = :s ORDER BY position",
        s=session,
    )
    return [(str(r["message_key"]), str(r["status"]), int(str(r["retry_count"]))) for r in rows]


@pytest.fixture
def customer(database: Database) -> UUID:
    return make_customer(database)


@pytest.fixture
def queue(database: Database, customer: UUID) -> PersistentMessageQueue:
    return PersistentMessageQueue(True, customer, "s", engine=database.engine, settings=STILL)
