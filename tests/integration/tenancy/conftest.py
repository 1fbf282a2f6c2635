"""One database for all tests of tenancy, and in it two customers in a transaction that is never committed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from resources.postgres.access import SERVICE
from resources.postgres.connection import driver_url
from tests.integration.tenancy.cells import Tenants, become
from tests.support.databases import Database, administer, create_database
from tests.support.rows import make_customer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from resources.services import Endpoints


@contextmanager
def two_customers(url: str) -> Iterator[tuple[Connection, Tenants]]:
    """A transaction as the url's role with two customers' rows in it; rolled back at the end."""
    engine = create_engine(driver_url(url), poolclass=NullPool)
    with engine.connect() as connection:
        savepoint = connection.begin_nested()
        become(connection, SERVICE, None)
        tenants = Tenants(make_customer(connection), make_customer(connection))
        connection.execute(text("RESET ROLE"))
        savepoint.commit()
        yield connection, tenants
        connection.rollback()
    engine.dispose()


@pytest.fixture(scope="package")
def tenancy_database(cluster: Endpoints, migrated_template: str) -> Iterator[Database]:
    """A migrated database whose rows are never committed."""
    made = create_database(cluster, migrated_template)
    yield made
    administer(cluster, f"DROP DATABASE {made.name} WITH (FORCE)")


@pytest.fixture(scope="module")
def populated(tenancy_database: Database) -> Iterator[tuple[Connection, Tenants]]:
    """A connection as the role that runs the program, and two customers that it sees.

    A module's, because its locks would keep another module from changing a policy.
    """
    with two_customers(tenancy_database.url) as made:
        yield made
