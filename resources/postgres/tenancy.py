"""The two ways to the permanent tier: for one customer, and for the service itself. One transaction each."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import text

from resources.postgres.access import CLIENT, SERVICE
from resources.postgres.connection import describe_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
    tenant = _tenant(customer_id)
    with _engine(engine).begin() as connection:
        connection.execute(_BECOME, tenant)
        yield connection


@contextmanager
def service_connection(*, engine: Engine | None = None) -> Iterator[Connection]:
    """A transaction that sees and writes all rows, for the server side.

    It commits at the end of the block, and rolls back on an exception.
    """
    with _engine(engine).begin() as connection:
        connection.execute(_BECOME, _SERVICE)
        yield connection


# --- on a connection that its owner keeps, for whoever makes many short transactions one after the other ---------


@contextmanager
def tenant_transaction(connection: Connection, customer_id: UUID | str) -> Iterator[None]:
    """A transaction as the customer.

    Raises:
        ValueError: the customer's id is no uuid.
    """
    tenant = _tenant(customer_id)
    with connection.begin():
        connection.execute(_BECOME, tenant)
        yield


@contextmanager
def service_transaction(connection: Connection) -> Iterator[None]:
    """A transaction as the service."""
    with connection.begin():
        connection.execute(_BECOME, _SERVICE)
        yield


@contextmanager
def tenant_pipeline(customer_id: UUID | str, *, engine: Engine | None = None) -> Iterator[psycopg.Connection[Any]]:
    """As `tenant_connection`, but in the driver's pipeline: nothing is waited for until a result is read.

    Becoming the customer is sent with the first statements, and COMMIT with the last of those that are not read
    within the block. Results can be read after it, too.

    Args:
        customer_id: the customer; need not exist (then there are no rows).
        engine: another database than the configured one.

    Raises:
        ValueError: it is no uuid.
        DatabaseError: the database refused a statement, or does not answer.
    """
    become, identity = become_statement(customer_id)
    engine = _engine(engine)
    # Back in the pool, what has not been committed is rolled back, and a broken connection is thrown away.
    with engine.connect() as connection:
        driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
        try:
            with driver.pipeline():
                driver.execute(become, identity)
                yield driver
                driver.commit()
        except psycopg.Error as error:
            raise describe_error(error, engine.url.render_as_string(hide_password=False)) from error


def query_as(
    connection: Connection, customer_id: UUID | str | None, statement: str, parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One statement in a transaction of its own, as the customer or (None) as the service, in one round trip.

    Args:
        connection: outside of a transaction.
        customer_id: the customer.
        statement: in psycopg's form (`%(name)s`).
        parameters: of the statement.

    Raises:
        ValueError: the customer's id is no uuid.
        psycopg.Error: the driver's own errors, because its pipeline is used.
    """
    become, identity = become_statement(customer_id)
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    try:
        # Identity, statement and commit are sent together; if one fails, the rest is not done.
        with driver.pipeline():
            driver.execute(become, identity)
            cursor = driver.cursor(row_factory=dict_row)
            cursor.execute(statement, parameters)
            driver.commit()
    except psycopg.Error:
        if not driver.closed:
            driver.rollback()
        raise
    return cursor.fetchall()


# For a statement that does nothing but call functions: becoming the customer is its first step, and it is a
# transaction by itself, so there is one round trip and no BEGIN and COMMIT. A function's own statements are planned
# when it runs, under the role of that moment; a statement that names tables is planned before, and must not be sent
# so. What it calls has to depend on `me.ready`, or Postgres might call it first.
AS_WHOM: Final = (
    "WITH me AS MATERIALIZED (SELECT set_config('request.jwt.claims', %(me_claims)s, true) IS NOT NULL "
    "AND set_config('role', %(me_role)s, true) IS NOT NULL AS ready)"
)


def as_whom(customer_id: UUID | str) -> dict[str, str]:
    """The parameters of `AS_WHOM`.

    Raises:
        ValueError: the customer's id is no uuid.
    """
    tenant = _tenant(customer_id)
    return {"me_claims": tenant["claims"], "me_role": tenant["role"]}


def call_functions(connection: Connection, statement: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A statement that begins with `AS_WHOM`, by itself.

    Args:
        connection: outside of a transaction.
        statement: in psycopg's form.
        parameters: of the statement, those of `as_whom` among them.

    Raises:
        psycopg.Error: the driver's own errors.
    """
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    driver.autocommit = True
    try:
        with driver.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, parameters).fetchall()
    finally:
        if not driver.closed:
            driver.autocommit = False


def become_statement(customer_id: UUID | str | None) -> tuple[str, dict[str, str]]:
    """The first statement of a transaction as the customer, or (None) as the service, in psycopg's form.

    Raises:
        ValueError: the customer's id is no uuid.
    """
    statement = "SELECT set_config('request.jwt.claims', %(claims)s, true), set_config('role', %(role)s, true)"
    return statement, _SERVICE if customer_id is None else _tenant(customer_id)


_SERVICE = {"claims": "", "role": SERVICE}


def _tenant(customer_id: UUID | str) -> dict[str, str]:
    """The parameters of `_BECOME`."""
    try:
        customer = customer_id if isinstance(customer_id, UUID) else UUID(customer_id)
    except (ValueError, AttributeError, TypeError) as error:
        msg = f"customer id {customer_id!r} is not a uuid"
        raise ValueError(msg) from error
    return {"claims": json.dumps({"customer_id": str(customer), "role": CLIENT}), "role": CLIENT}
