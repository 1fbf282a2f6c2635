"""The queue as its keepers see it: what is in it, what holds it up, trying again, removing. As the service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from resources.postgres.customer_rows import customer_id_of
from resources.postgres.models import MESSAGE_STATUSES
from resources.postgres.tenancy import service_connection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine


class UnknownMessage(LookupError):
    """There is no message with this id."""

    def __init__(self, message_id: UUID | str) -> None:
        super().__init__(f"there is no queued message {message_id}: `omniops queue list` shows those that there are")


class QueueRefused(RuntimeError):
    """What was asked for cannot be done with a message as it is; nothing was changed."""


_COLUMNS: Final = """
    q.id, c.slug AS customer, q.session_id, q.message_key AS key, q.message_data ->> 'type' AS type, q.status,
    q.retry_count, q.created_at, q.expires_at, q.available_at, q.leased_until, q.completed_at, q.error_message,
    q.redrive_requested_at
"""
_WHERE: Final = """
    WHERE (CAST(:customer AS uuid) IS NULL OR q.customer_id = :customer)
      AND (CAST(:session AS text) IS NULL OR q.session_id = :session)
      AND (CAST(:status AS text) IS NULL OR q.status = :status)
"""
_LIST: Final = text(f"""
    SELECT {_COLUMNS} FROM public.message_queue AS q JOIN public.customers AS c ON c.id = q.customer_id
    {_WHERE} ORDER BY q.position DESC LIMIT :limit
""")  # noqa: S608 - constants of this module
_SHOW: Final = text(f"""
    SELECT {_COLUMNS}, q.position, q.customer_id, q.conversation_id, q.message_data AS message,
           (SELECT count(*) FROM public.message_queue AS o WHERE o.customer_id = q.customer_id
            AND o.session_id = q.session_id AND o.is_open AND o.position < q.position) AS open_before,
           (SELECT count(*) FROM public.message_queue AS o WHERE o.customer_id = q.customer_id
            AND o.session_id = q.session_id AND o.is_open AND o.position > q.position) AS open_behind
    FROM public.message_queue AS q JOIN public.customers AS c ON c.id = q.customer_id WHERE q.id = :id
""")  # noqa: S608 - constants of this module
_FAILED: Final = text(f"""
    SELECT q.id FROM public.message_queue AS q {_WHERE} AND q.status = 'failed' ORDER BY q.position
""")  # noqa: S608 - constants of this module
_REDRIVE: Final = text("SELECT id FROM public.message_queue_redrive(CAST(:ids AS uuid[]))")
# A statement of its own: within one, what the function changed would not be seen.
_REDRIVEN: Final = text(f"""
    SELECT {_COLUMNS},
           (SELECT count(*) FROM public.message_queue AS o WHERE o.customer_id = q.customer_id
            AND o.session_id = q.session_id AND o.status = 'completed' AND o.position > q.position) AS overtaken_by
    FROM public.message_queue AS q JOIN public.customers AS c ON c.id = q.customer_id
    WHERE q.id = ANY (CAST(:ids AS uuid[])) ORDER BY c.slug, q.session_id, q.position
""")  # noqa: S608 - constants of this module
_LOCK: Final = text(f"""
    SELECT {_COLUMNS}, q.customer_id, q.status = 'processing' AND q.leased_until > now() AS leased
    FROM public.message_queue AS q JOIN public.customers AS c ON c.id = q.customer_id
    {_WHERE} AND (CAST(:ids AS uuid[]) IS NULL OR q.id = ANY (CAST(:ids AS uuid[])))
    ORDER BY q.position FOR UPDATE OF q
""")  # noqa: S608 - constants of this module
_HOLD: Final = text("""
    SELECT DISTINCT c.slug FROM public.legal_holds AS h JOIN public.customers AS c ON c.id = h.customer_id
    WHERE h.customer_id = ANY (CAST(:customers AS uuid[])) AND h.released_at IS NULL
""")
# A session's head that failed, or whose handler died, holds up the rest.
_BLOCKED: Final = text("""
    SELECT c.slug AS customer, h.session_id, h.id AS blocked_by, h.message_key AS key, h.status, h.retry_count,
           CASE WHEN h.status = 'pending' THEN h.available_at ELSE h.leased_until END AS next_try_at,
           extract(epoch FROM now() - h.created_at)::double precision AS age_seconds,
           (SELECT count(*) FROM public.message_queue AS o WHERE o.customer_id = h.customer_id
            AND o.session_id = h.session_id AND o.is_open AND o.position > h.position) AS messages_behind,
           h.error_message
    FROM (
        SELECT DISTINCT ON (q.customer_id, q.session_id) q.*
        FROM public.message_queue AS q
        WHERE q.is_open AND (CAST(:customer AS uuid) IS NULL OR q.customer_id = :customer)
          AND (q.expires_at > now() OR (q.status = 'processing' AND q.leased_until > now()))
        ORDER BY q.customer_id, q.session_id, q.position
    ) AS h JOIN public.customers AS c ON c.id = h.customer_id
    WHERE h.retry_count > 0 OR (h.status = 'processing' AND h.leased_until <= now())
    ORDER BY h.created_at LIMIT :limit
""")
_COUNTS: Final = text("""
    SELECT c.slug AS customer,
           count(*) FILTER (WHERE q.status = 'pending') AS pending,
           count(*) FILTER (WHERE q.status = 'processing') AS processing,
           count(*) FILTER (WHERE q.status = 'completed') AS completed,
           count(*) FILTER (WHERE q.status = 'failed') AS failed,
           count(*) FILTER (WHERE q.is_open AND q.expires_at <= now()
                            AND NOT (q.status = 'processing' AND coalesce(q.leased_until, '-infinity') > now()))
               AS expired_unprocessed,
           count(DISTINCT q.session_id) FILTER (WHERE q.is_open) AS open_sessions,
           extract(epoch FROM now() - min(q.created_at) FILTER (WHERE q.is_open AND q.expires_at > now()))
               ::double precision AS oldest_open_seconds
    FROM public.message_queue AS q JOIN public.customers AS c ON c.id = q.customer_id
    WHERE (CAST(:customer AS uuid) IS NULL OR q.customer_id = :customer)
    GROUP BY c.slug ORDER BY c.slug
""")


def _customer(connection: Connection, slug: str | None) -> UUID | None:
    return None if slug is None else customer_id_of(connection, slug)


def _dicts(rows: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in rows.mappings()]


def list_messages(
    engine: Engine,
    *,
    customer: str | None = None,
    session: str | None = None,
    status: str | None = None,
    limit: int = 20,
) -> list[dict[str, Any]]:
    """Messages, the newest first.

    Args:
        engine: the permanent tier.
        customer: slug; None: of all.
        session: of this one only.
        status: only those that are so.
        limit: so many at most.

    Raises:
        UnknownCustomer: nobody has this slug.
    """
    with service_connection(engine=engine) as connection:
        return _dicts(
            connection.execute(
                _LIST,
                {"customer": _customer(connection, customer), "session": session, "status": status, "limit": limit},
            )
        )


def show_message(engine: Engine, message_id: UUID) -> dict[str, Any]:
    """One message, with what it says and how many of its session stand before and behind it.

    Raises:
        UnknownMessage: there is none with this id.
    """
    with service_connection(engine=engine) as connection:
        found = _dicts(connection.execute(_SHOW, {"id": message_id}))
    if not found:
        raise UnknownMessage(message_id)
    return found[0]


def failed_messages(engine: Engine, *, customer: str | None = None, session: str | None = None) -> list[UUID]:
    """Ids of the messages that were given up, in the order of their arrival.

    Raises:
        UnknownCustomer: nobody has this slug.
    """
    with service_connection(engine=engine) as connection:
        parameters = {"customer": _customer(connection, customer), "session": session, "status": None}
        return list(connection.scalars(_FAILED, parameters))


def redrive(engine: Engine, messages: Sequence[UUID]) -> list[dict[str, Any]]:
    """Let failed messages be tried again, from the first try on, for another 24 hours, at their places.

    Returns:
        Each message, with its `status` (`failed` where its session is being handled at the moment: it is opened when
        that message is done) and `overtaken_by`: how many later ones of its session were completed meanwhile.

    Raises:
        UnknownMessage: one is not there; nothing was changed.
        QueueRefused: one did not fail; nothing was changed.
    """
    with service_connection(engine=engine) as connection:
        there = {
            row.id: row.status
            for row in connection.execute(
                text("SELECT id, status FROM public.message_queue WHERE id = ANY (:ids)"), {"ids": list(messages)}
            )
        }
        for message in messages:
            if message not in there:
                raise UnknownMessage(message)
            if there[message] != "failed":
                msg = f"message {message} is {there[message]}: only a failed one can be tried again"
                raise QueueRefused(msg)
        taken = list(connection.scalars(_REDRIVE, {"ids": list(messages)}))
        return _dicts(connection.execute(_REDRIVEN, {"ids": taken}))


def drop(
    engine: Engine,
    *,
    messages: Sequence[UUID] | None = None,
    customer: str | None = None,
    session: str | None = None,
    status: str | None = None,
    dry_run: bool = False,
) -> list[dict[str, Any]]:
    """Remove messages: those named, or those of a customer.

    Args:
        engine: the permanent tier.
        messages: ids.
        customer: slug; required where no messages are named.
        session: of this one only.
        status: only those that are so.
        dry_run: only return what would be removed.

    Returns:
        What was removed.

    Raises:
        UnknownMessage: one is not there; nothing was removed.
        UnknownCustomer: nobody has this slug.
        QueueRefused: one is leased, or its customer is under a legal hold; nothing was removed.
        ValueError: neither messages nor a customer were named, or there is no such status.
    """
    if messages is None and customer is None:
        msg = "which messages? name them, or a customer"
        raise ValueError(msg)
    if status is not None and status not in MESSAGE_STATUSES:
        msg = f"there is no status {status!r}; there are: {', '.join(MESSAGE_STATUSES)}"
        raise ValueError(msg)
    with service_connection(engine=engine) as connection:
        found = _dicts(
            connection.execute(
                _LOCK,
                {
                    "customer": _customer(connection, customer), "session": session, "status": status,
                    "ids": None if messages is None else list(messages),
                },
            )
        )  # fmt: skip
        ids = {row["id"] for row in found}
        for message in messages or ():
            if message not in ids:
                raise UnknownMessage(message)
        for row in found:
            if row.pop("leased"):
                msg = (
                    f"message {row['id']} of session {row['session_id']} is being handled until "
                    f"{row['leased_until']:%H:%M:%S}: wait for its handler to end; nothing was removed"
                )
                raise QueueRefused(msg)
        customers = sorted({row.pop("customer_id") for row in found})
        # As every removal does: against a hold that is placed in this moment.
        connection.execute(
            text("SELECT 1 FROM public.customers WHERE id = ANY (:ids) ORDER BY id FOR SHARE"), {"ids": customers}
        )
        held = list(connection.scalars(_HOLD, {"customers": customers}))
        if held:
            msg = f"customer {', '.join(held)} is under a legal hold: nothing of theirs is removed"
            raise QueueRefused(msg)
        if not dry_run:
            connection.execute(text("DELETE FROM public.message_queue WHERE id = ANY (:ids)"), {"ids": list(ids)})
    return found


def stats(engine: Engine, *, customer: str | None = None, limit: int = 20) -> dict[str, Any]:
    """How much is in the queue, by customer, and which sessions are held up, the longest first.

    Args:
        engine: the permanent tier.
        customer: slug; None: of all.
        limit: so many held-up sessions at most.

    Raises:
        UnknownCustomer: nobody has this slug.
    """
    with service_connection(engine=engine) as connection:
        parameters = {"customer": _customer(connection, customer), "limit": limit}
        return {
            "customers": _dicts(connection.execute(_COUNTS, {"customer": parameters["customer"]})),
            "blocked_sessions": _dicts(connection.execute(_BLOCKED, parameters)),
        }
