"""The two ways to the permanent tier: for one customer, and for the service itself. One transaction each."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from resources.postgres.access import CLIENT, SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

# Both settings are the transaction's own (`true`), so a pooled connection carries nothing over to its next user. One
# statement, because a tenant's every request pays for it.
_BECOME = text("SELECT set_config('request.jwt.claims', :claims, true), set_config('role', :role, true)")


def _engine(engine: Engine | None) -> Engine:
    if engine is not None:
        return engine
    from resources.stack import database_engine  # noqa: PLC0415 - the stack is above the database's own modules

    return database_engine()


@contextmanager
def tenant_connection(customer_id: UUID | str, *, engine: Engine | None = None) -> Iterator[Connection]:
    """A transaction that sees and writes one customer's rows only. There is no other way in for client access.

    It commits at the end of the block, and rolls back on an exception.

    Args:
        customer_id: the customer; need not exist (then there are no rows).
        engine: another database than the configured one.

    Raises:
        ValueError: it is no uuid.
    """
    try:
        customer = customer_id if isinstance(customer_id, UUID) else UUID(customer_id)
    except (ValueError, AttributeError, TypeError) as error:
        msg = f"customer id {customer_id!r} is not a uuid"
        raise ValueError(msg) from error
    claims = json.dumps({"customer_id": str(customer), "role": CLIENT})
    with _engine(engine).begin() as connection:
        connection.execute(_BECOME, {"claims": claims, "role": CLIENT})
        yield connection


@contextmanager
def service_connection(*, engine: Engine | None = None) -> Iterator[Connection]:
    """A transaction that sees and writes all rows, for the server side.

    It commits at the end of the block, and rolls back on an exception.
    """
    with _engine(engine).begin() as connection:
        connection.execute(_BECOME, {"claims": "", "role": SERVICE})
        yield connection
