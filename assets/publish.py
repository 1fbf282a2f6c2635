"""From a question to a materialised report: connection, file, metadata."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import dagster as dg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from assets.html import describe_database
from resources.crawler.crawl_order import RefusedOrder, check_database
from resources.postgres.connection import DatabaseError, describe_error
from resources.services import ServiceError
from resources.settings import InvalidSetting, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from assets.html import Report
    from resources.postgres.resource import PostgresResource

# Made weekly; what is a day late is not old yet.
WEEKLY: Final = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=9), warn_window=timedelta(days=8))

# No single question of a report or a check takes longer on tables of millions of rows; one that does is ended rather
# than left to hold back vacuum.
STATEMENT_TIMEOUT_MS: Final = 120_000


@contextmanager
def snapshot(postgres: PostgresResource, *, read_only: bool = True) -> Iterator[Connection]:
    """A transaction over one state of the database, so that the figures of a report agree with each other.

    Raises:
        Failure: the database cannot be used, or a question took too long; in words, without retries.
    """
    try:
        check_database(postgres.endpoints().database_url)
        engine = postgres.engine().execution_options(isolation_level="REPEATABLE READ")
        with engine.begin() as connection:
            connection.execute(
                text("""
                    SELECT set_config('statement_timeout', :timeout, true),
                           set_config('transaction_read_only', :read_only, true)
                """),
                {"timeout": f"{STATEMENT_TIMEOUT_MS}ms", "read_only": "on" if read_only else "off"},
            )
            yield connection
    except (DatabaseError, RefusedOrder, ServiceError, InvalidSetting) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    except DBAPIError as error:
        sentence = describe_error(error, postgres.endpoints().database_url)
        raise dg.Failure(description=str(sentence), allow_retries=False) from error


def publish(
    postgres: PostgresResource, build: Callable[[Connection, str], Report], *, read_only: bool = True
) -> dg.MaterializeResult[None]:
    """Build a report over one state of the database, write its file, and show it at its asset.

    Args:
        postgres: the permanent tier.
        build: makes the report of a connection and the database's description.
        read_only: False where the report's own asset writes a table.

    Raises:
        Failure: the database cannot be used, or the file not be written; in words.
    """
    with snapshot(postgres, read_only=read_only) as connection:
        report = build(connection, describe_database(postgres.engine()))
    home = Settings.from_environment().home
    try:
        path = report.write(home)
    except OSError as error:
        msg = f"the report {report.name} cannot be written below {home} ({error}): OMNIOPS_HOME must be writable"
        raise dg.Failure(description=msg, allow_retries=False) from error
    return dg.MaterializeResult(asset_key=report.name, metadata=report.metadata(path))
