"""The compliance record: legal holds, and `gdpr_audit_log`, which proves what was done and holds no personal data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import text

from resources.postgres.customer_rows import customer_id_of
from resources.postgres.jobs import clean_message

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection, Engine

Action = Literal["export", "erasure_preview", "erasure", "hold", "release"]
Status = Literal["started", "completed", "refused", "failed"]

# Who asked, where the caller does not say: the program, never a person's name.
PROGRAM = "omniops"


class NoHold(LookupError):
    """There is no hold to release."""


@dataclass(frozen=True, slots=True)
class LegalHold:
    """One hold. While `released_at` is None, nothing of its customer is removed."""

    id: UUID
    customer: str
    customer_id: UUID
    reason: str
    placed_by: str
    placed_at: datetime
    released_at: datetime | None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def log_action(
    connection: Connection,
    customer_id: UUID,
    action: Action,
    status: Status,
    *,
    actor: str = PROGRAM,
    details: dict[str, Any] | None = None,
) -> int:
    """Write an entry of the audit log, in the connection's transaction; returns its id.

    Args:
        connection: as the service.
        customer_id: whom it is about.
        action: what was done.
        status: how far it came.
        actor: the role or program that asked; no person's name.
        details: counts by table; no personal data.
    """
    entry: int = connection.execute(
        text("""
            INSERT INTO gdpr_audit_log (customer_id, action, actor, status, details, completed_at)
            VALUES (:customer_id, :action, :actor, :status, CAST(:details AS jsonb),
                    CASE WHEN :status <> 'started' THEN now() END)
            RETURNING id
        """),
        {
            "customer_id": customer_id,
            "action": action,
            "actor": actor,
            "status": status,
            "details": json.dumps(details or {}),
        },
    ).scalar_one()
    return entry


def finish_action(connection: Connection, entry: int, status: Status, details: dict[str, Any]) -> None:
    """Say how an action that was logged as started came out."""
    connection.execute(
        text("""
            UPDATE gdpr_audit_log SET status = :status, details = CAST(:details AS jsonb), completed_at = now()
            WHERE id = :id
        """),
        {"id": entry, "status": status, "details": json.dumps(details)},
    )


def place_hold(engine: Engine, slug: str, reason: str, *, actor: str = PROGRAM) -> LegalHold:
    """Put a customer under a legal hold: from the return of this call on, nothing of theirs is removed.

    It waits for the batch of a removal that is under way. Several holds stand side by side.

    Raises:
        UnknownCustomer: there is no such customer.
        ValueError: no reason is given.
    """
    cleaned = (clean_message(reason) or "").strip()
    if not cleaned:
        msg = f"a legal hold on {slug} needs a reason: which case, which letter"
        raise ValueError(msg)
    with engine.begin() as connection:
        customer_id = customer_id_of(connection, slug)
        hold = connection.scalar(
            text(
                "INSERT INTO legal_holds (customer_id, reason, placed_by) VALUES (:id, :reason, :actor) RETURNING id"
            ),
            {"id": customer_id, "reason": cleaned, "actor": actor},
        )
        log_action(connection, customer_id, "hold", "completed", actor=actor, details={"hold": str(hold)})
        (placed,) = _holds(connection, "h.id = :id", {"id": hold})
    return placed


def release_holds(engine: Engine, slug: str, *, actor: str = PROGRAM) -> list[LegalHold]:
    """Release all holds of a customer that are in force, and return them.

    Raises:
        UnknownCustomer: there is no such customer.
        NoHold: none is in force.
    """
    with engine.begin() as connection:
        customer_id = customer_id_of(connection, slug)
        released = connection.scalars(
            text("""
                UPDATE legal_holds SET released_at = now() WHERE customer_id = :id AND released_at IS NULL
                RETURNING id
            """),
            {"id": customer_id},
        ).all()
        if not released:
            msg = f"customer {slug} is under no legal hold: there is nothing to release"
            raise NoHold(msg)
        details = {"holds": [str(hold) for hold in released]}
        log_action(connection, customer_id, "release", "completed", actor=actor, details=details)
        return _holds(connection, "h.id = ANY (:ids)", {"ids": list(released)})


def list_holds(engine: Engine, *, released: bool = False) -> list[LegalHold]:
    """Holds in force, the newest first; those released too, if asked for."""
    with engine.connect() as connection:
        return _holds(connection, "true" if released else "h.released_at IS NULL", {})


def _holds(connection: Connection, which: str, parameters: dict[str, Any]) -> list[LegalHold]:
    rows = connection.execute(
        text(f"""
            SELECT h.id, c.slug AS customer, h.customer_id, h.reason, h.placed_by, h.placed_at, h.released_at
            FROM legal_holds AS h JOIN customers AS c ON c.id = h.customer_id
            WHERE {which} ORDER BY h.placed_at DESC, h.id
        """),  # noqa: S608 - one of three constants
        parameters,
    )
    return [LegalHold(**row) for row in rows.mappings()]
