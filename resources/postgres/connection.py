"""Connections to the permanent tier.

One place decides the driver (psycopg 3), names the application for `pg_stat_activity`, and turns the driver's
errors into sentences. Passwords never appear in them.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import URL

APPLICATION_NAME = "omniops"

# libpq's own waits are without end. Ten seconds for a connection is long for a database and short for a person; and a
# server that went away without a word (its machine lost its power) is noticed within a minute.
_CONNECT_ARGS = {
    "connect_timeout": 10,
    "application_name": APPLICATION_NAME,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


class DatabaseError(RuntimeError):
    """The database cannot be used; the message is one sentence for a person."""


class DatabaseUnreachable(DatabaseError):
    """The database does not answer, or stopped answering."""


class DatabaseNotMigrated(DatabaseError):
    """The database does not have this code's tables yet."""


def driver_url(url: str) -> URL:
    """Parse a plain `postgresql://` url and give it psycopg 3 as its driver.

    Raises:
        DatabaseError: it is not a PostgreSQL url.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        msg = "the database url cannot be read: it should look like postgresql://user:password@host:5432/name"
        raise DatabaseError(msg) from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        msg = f"the database url begins with {parsed.drivername}://, but this needs postgresql://"
        raise DatabaseError(msg)
    return parsed.set(drivername="postgresql+psycopg")


def role_of(url: str) -> str | None:
    """The role's name in a url, or None where it is left to the environment."""
    return driver_url(url).username


def redact(url: str) -> str:
    """The url with its password hidden, for people and logs."""
    return make_url(url).render_as_string(hide_password=True)


def describe_error(error: Exception, url: str) -> DatabaseError:
    """Turn a driver's error into a sentence that says what, to what, and what to do."""
    original = getattr(error, "orig", None) or error
    reason = str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__
    code = getattr(original, "sqlstate", None)
    where = redact(url)
    if code in ("42P01", "3F000"):
        return DatabaseNotMigrated(
            f"the database {where} does not have the tables yet ({reason}): run `omniops migrate`"
        )
    if isinstance(error, OperationalError) or is_connection_lost(error):
        return DatabaseUnreachable(
            f"the database {where} cannot be reached ({reason}): check OMNIOPS_DATABASE_URL, "
            "or unset it to use the embedded one"
        )
    return DatabaseError(f"the database {where} refused: {reason}")


# Classes of SQLSTATE that say "the server went away", not "the statement is wrong":
# 08 connection exception, 57P operator intervention (shutdown, crash), 53300 too many connections, 25P03 its
# transaction was left alone for too long (the program was frozen).
_LOST = ("08", "57P", "53300", "25P03")


def is_connection_lost(error: BaseException) -> bool:
    """True if a later try on a new connection may succeed. Errors of SQLAlchemy and of the driver itself."""
    if isinstance(error, psycopg.Error):
        if error.sqlstate is None:
            return isinstance(error, psycopg.OperationalError)
        return error.sqlstate.startswith(_LOST)
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    code = getattr(error.orig, "sqlstate", None)
    if code is None:
        return isinstance(error, OperationalError)
    return str(code).startswith(_LOST)


@contextmanager
def connect_once(url: str) -> Iterator[Connection]:
    """A connection for one task of administration, closed at the end; errors come as DatabaseError."""
    engine = create_engine(driver_url(url), poolclass=NullPool, connect_args=_CONNECT_ARGS)
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise describe_error(error, url) from error
    finally:
        engine.dispose()


_engines: dict[tuple[str, float | None], Engine] = {}
_engines_lock = threading.Lock()


def engine_for(url: str, *, idle_in_transaction_seconds: float | None = None) -> Engine:
    """The process's engine for a url: a small pool, checked before use, so a restarted server is no error.

    Args:
        url: of the database.
        idle_in_transaction_seconds: the server ends a transaction for which this process does nothing for so long,
            and with it the locks that a frozen process would hold; None: the server's own setting.
    """
    with _engines_lock:
        engine = _engines.get((url, idle_in_transaction_seconds))
        if engine is None:
            engine = create_engine(
                driver_url(url),
                pool_size=5,
                max_overflow=10,
                pool_pre_ping=True,
                pool_recycle=1800,
                connect_args=_CONNECT_ARGS,
            )
            if idle_in_transaction_seconds is not None:
                _bound_transactions(engine, idle_in_transaction_seconds)
            _engines[url, idle_in_transaction_seconds] = engine
        return engine


def _bound_transactions(engine: Engine, seconds: float) -> None:
    """Have the server end transactions of this pool that are left alone."""

    @event.listens_for(engine, "connect")
    def bound(connection: Any, _: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = {round(seconds * 1000)}")
        connection.commit()


def dispose_engines() -> None:
    """Close every pooled connection of the process (the embedded server waits for them at shutdown)."""
    with _engines_lock:
        for engine in _engines.values():
            engine.dispose()
        _engines.clear()
