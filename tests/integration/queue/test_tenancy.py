"""Customers cannot see, take, acknowledge or hold up each other's messages; without a context there is nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources.postgres.connection import connect_once
from resources.postgres.message_queue import AsyncPersistentMessageQueue, PersistentMessageQueue
from resources.postgres.queue_worker import QueueWorker
from resources.postgres.tenancy import service_connection, tenant_connection
from tests.integration.queue.conftest import STILL, make_customer, message, states

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from sqlalchemy import Connection

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

_CLAIM = "message_queue_claim('{c}', 's', '{t}', interval '1 hour', 3)"
_TOKEN = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def other(database: Database) -> UUID:
    return make_customer(database, "globex")


@pytest.fixture(params=["other", "none"])
def stranger(request: pytest.FixtureRequest, database: Database, other: UUID) -> Iterator[Connection]:
    """A connection with client access: as another customer, or without any context."""
    with tenant_connection(other, engine=database.engine) as connection:
        if request.param == "none":
            connection.execute(text("SELECT set_config('request.jwt.claims', '', true)"))
        yield connection


def test_nothing_of_another_customer_can_be_seen_or_claimed(
    database: Database, queue: PersistentMessageQueue, stranger: Connection
) -> None:
    queue.enqueue_many([message(k) for k in "ab"])
    for call in (
        _CLAIM.format(c=queue.customer_id, t=_TOKEN),
        f"message_queue_claim_next('{queue.customer_id}', '', '{_TOKEN}', interval '1 hour', 3)",
    ):
        assert stranger.scalar(text(f"SELECT outcome FROM {call}")) in ("empty", "end")
    assert stranger.scalar(text("SELECT count(*) FROM message_queue")) == 0
    assert states(database) == [("a", "pending", 0), ("b", "pending", 0)]


def test_nothing_of_another_customer_can_be_acknowledged_failed_renewed_or_tried_again(
    database: Database, queue: PersistentMessageQueue, stranger: Connection
) -> None:
    queue.enqueue(message("a"))
    with tenant_connection(queue.customer_id, engine=database.engine) as connection:
        claimed: Any = connection.execute(
            text(f"SELECT id, outcome FROM {_CLAIM.format(c=queue.customer_id, t=_TOKEN)}")
        ).one()
    assert claimed.outcome == "claimed"
    given = f"'{queue.customer_id}', '{claimed.id}', '{_TOKEN}'"
    arrays = f"'{queue.customer_id}', ARRAY['{claimed.id}'::uuid], ARRAY['{_TOKEN}'::uuid], interval '9 hours'"
    assert stranger.scalar(text(f"SELECT acknowledged FROM message_queue_acknowledge({given})")) is False
    fail = f"message_queue_fail({given}, 'x', interval '0', 1, true)"
    assert stranger.scalar(text(f"SELECT outcome FROM {fail}")) == "lost"
    assert stranger.execute(text(f"SELECT * FROM message_queue_renew({arrays})")).all() == []
    assert states(database) == [("a", "processing", 0)]
    with tenant_connection(queue.customer_id, engine=database.engine) as connection:
        connection.execute(text(f"SELECT * FROM {fail}"))
    redrive = f"message_queue_redrive(ARRAY['{claimed.id}'::uuid])"
    assert stranger.execute(text(f"SELECT * FROM {redrive}")).all() == []
    assert states(database) == [("a", "failed", 1)]
    with tenant_connection(queue.customer_id, engine=database.engine) as connection:
        assert len(connection.execute(text(f"SELECT * FROM {redrive}")).all()) == 1
    assert states(database) == [("a", "pending", 0)]


def test_nothing_can_be_written_for_another_customer(
    database: Database, queue: PersistentMessageQueue, stranger: Connection
) -> None:
    with pytest.raises(DBAPIError, match="row-level security"):
        stranger.execute(
            text("SELECT * FROM message_queue_enqueue(:c, 's', NULL, CAST(:m AS jsonb))"),
            {"c": queue.customer_id, "m": '[{"type": "t", "key": "k", "value": 1, "timestamp": 1}]'},
        )
    assert states(database) == []


def test_the_same_session_and_key_of_two_customers_are_two_messages(
    database: Database, queue: PersistentMessageQueue, other: UUID
) -> None:
    theirs = PersistentMessageQueue(True, other, "s", engine=database.engine, settings=STILL)
    queue.enqueue(message("a", "ours"))
    assert theirs.enqueue(message("a", "theirs")).new
    seen: list[Any] = []
    # One's failing message is nothing to the other.
    assert queue.replay_with_persistence(_fails).blocked_by == "a"
    assert theirs.replay_with_persistence(lambda m: seen.append(m.value)).handled == ("a",)
    assert seen == ["theirs"]


def _fails(_: Any) -> None:
    raise ValueError


def test_everything_that_writes_messages_runs_as_the_customer(
    database: Database, queue: PersistentMessageQueue
) -> None:
    with connect_once(database.admin_url) as administrator:
        administrator.exec_driver_sql("""
            CREATE SCHEMA watched; GRANT USAGE ON SCHEMA watched TO PUBLIC;
            CREATE TABLE watched.writers (role text, claims text);
            GRANT INSERT ON watched.writers TO PUBLIC;
            CREATE FUNCTION watched.note() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO watched.writers
                VALUES (current_user, current_setting('request.jwt.claims')::json ->> 'customer_id');
                RETURN NULL;
            END $$;
            CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON message_queue
            FOR EACH ROW EXECUTE FUNCTION watched.note();
        """)
        administrator.commit()

    async def asynchronously() -> None:
        face = AsyncPersistentMessageQueue(True, queue.customer_id, "t", database_url=database.url, settings=STILL)
        await face.enqueue(message("c"))
        await face.replay_with_persistence(lambda m: None)

    queue.enqueue(message("a"))
    queue.replay_with_persistence(_fails)
    pass_backoff_as_admin(database)
    queue.replay_with_persistence(lambda m: None)
    queue.enqueue(message("b"))
    QueueWorker(lambda m, c: None, transactional=True, settings=STILL, engine=database.engine).drain()
    asyncio.run(asynchronously())
    with connect_once(database.admin_url) as administrator:
        rows = administrator.execute(text("SELECT role, claims, count(*) FROM watched.writers GROUP BY 1, 2")).all()
    (row,) = [tuple(row) for row in rows]
    # Three inserts, four claims, three acknowledgements, one failure.
    assert row == ("authenticated", str(queue.customer_id), 11)


def pass_backoff_as_admin(database: Database) -> None:
    with connect_once(database.admin_url) as administrator:
        administrator.execute(text("ALTER TABLE message_queue DISABLE TRIGGER note"))
        administrator.execute(text("UPDATE message_queue SET available_at = now()"))
        administrator.execute(text("ALTER TABLE message_queue ENABLE TRIGGER note"))
        administrator.commit()


def test_anon_may_call_none_of_it(database: Database) -> None:
    with service_connection(engine=database.engine) as connection:
        names = list(
            connection.scalars(
                text("SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'message_queue_%'")
            )
        )
        assert len(names) == 8
        for name in names:
            for role, may in (("anon", False), ("authenticated", True), ("service_role", True)):
                has = text("SELECT has_function_privilege(:r, :f, 'EXECUTE')")
                assert connection.scalar(has, {"r": role, "f": name}) is may


def test_a_customers_id_that_is_nobodys_sees_nothing(database: Database, queue: PersistentMessageQueue) -> None:
    queue.enqueue(message("a"))
    nobody = PersistentMessageQueue(True, uuid4(), "s", engine=database.engine, settings=STILL)
    assert nobody.load_persisted_messages() == []
    assert nobody.replay_with_persistence(_fails).finished


@pytest.mark.parametrize(
    ("call", "index"),
    [
        ("SELECT 1 FROM message_queue AS q WHERE q.customer_id = '{c}' AND q.is_open AND q.session_id > 's1' "
         "ORDER BY q.session_id, q.position LIMIT 1", "message_queue_open"),
        ("SELECT 1 FROM message_queue AS q WHERE q.customer_id = '{c}' AND q.session_id = 's1' AND q.is_open "
         "AND q.position > 7 AND (q.expires_at > now() OR q.leased_until > now()) ORDER BY q.position LIMIT 1",
         "message_queue_open"),
        ("SELECT 1 FROM message_queue AS q WHERE q.customer_id = '{c}' AND q.session_id = 's1' "
         "AND q.redrive_requested_at IS NOT NULL", "message_queue_redrive"),
    ],
)  # fmt: skip
def test_under_row_level_security_the_claims_questions_are_conditions_of_the_index(
    database: Database, queue: PersistentMessageQueue, call: str, index: str
) -> None:
    """A condition whose operator might leak would be a filter, and every claim would read all that is open."""
    queue.enqueue(message("a"))
    with tenant_connection(queue.customer_id, engine=database.engine) as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(connection.scalars(text("EXPLAIN " + call.replace("{c}", str(queue.customer_id)))))
    assert f"using {index}" in plan
    conditions = next(line for line in plan.splitlines() if "Index Cond" in line)
    assert "session_id" in conditions
    assert "Sort" not in plan
    if "position > 7" in call:
        assert '"position" > 7' in conditions
