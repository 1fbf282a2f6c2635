"""The role that runs the program, and Supabase's roles as they are."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from resources.postgres.access import (
    ANON,
    CLIENT,
    ROLES,
    SERVICE,
    MissingAccess,
    UnsafeRole,
    check_runtime_role,
    check_runtime_url,
)
from resources.postgres.connection import connect_once
from resources.postgres.migrate import migrate
from tests.integration.tenancy.cells import violations
from tests.integration.tenancy.conftest import two_customers
from tests.integration.tenancy.structure import grants_of, openings
from tests.support.databases import Database, administer
from tests.support.rows import make_customer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resources.services import Endpoints

pytestmark = pytest.mark.integration


@contextmanager
def _role(cluster: Endpoints, attributes: str, *more: str) -> Iterator[str]:
    """A role of the cluster's for as long as the block."""
    administer(cluster, f"CREATE ROLE passing LOGIN {attributes}", *more)
    try:
        yield "passing"
    finally:
        administer(cluster, "DROP OWNED BY passing", "DROP ROLE passing")


def _as(url: str, role: str) -> str:
    return make_url(url).set(username=role).render_as_string(hide_password=False)


def test_the_role_that_runs_the_program_passes(tenancy_database: Database) -> None:
    check_runtime_url(tenancy_database.url)


def test_it_passes_before_there_is_a_table_too(empty_database: Database) -> None:
    check_runtime_url(empty_database.url)


@pytest.mark.parametrize(
    ("attributes", "grant", "why"),
    [
        ("SUPERUSER", "", "role passing, which is a superuser: "),
        ("BYPASSRLS", "GRANT service_role TO passing", "role passing, which has BYPASSRLS: "),
        ("SUPERUSER BYPASSRLS", "", "role passing, which is a superuser and has BYPASSRLS: "),
        ("", "GRANT omniops_owner TO passing", "role passing, which owns the tables: "),
        # Also where it would have to say SET ROLE first.
        ("NOINHERIT", "GRANT omniops_owner TO passing", "role passing, which owns the tables: "),
    ],
)
def test_a_role_that_row_level_security_does_not_bind_is_refused(
    attributes: str, grant: str, why: str, database: Database, cluster: Endpoints
) -> None:
    with _role(cluster, attributes, *([grant] if grant else [])) as role:
        administer(cluster, f"GRANT CONNECT ON DATABASE {database.name} TO {role}")
        with pytest.raises(UnsafeRole, match=why) as caught:
            check_runtime_url(_as(database.url, role))
        administer(cluster, f"REVOKE CONNECT ON DATABASE {database.name} FROM {role}")
    assert "OMNIOPS_OWNER_DATABASE_URL" in str(caught.value)


def test_the_owner_is_refused(database: Database) -> None:
    with pytest.raises(UnsafeRole, match="role omniops_owner, which owns the tables"):
        check_runtime_url(database.owner_url)


def test_a_role_that_was_not_let_in_is_told_to_migrate(database: Database, cluster: Endpoints) -> None:
    with _role(cluster, "", f"GRANT CONNECT ON DATABASE {database.name} TO passing") as role:
        with pytest.raises(MissingAccess, match="`omniops migrate`"):
            check_runtime_url(_as(database.url, role))
        administer(cluster, f"REVOKE CONNECT ON DATABASE {database.name} FROM {role}")


def test_the_roles_hold_no_attribute_that_gets_around_policies(tenancy_database: Database) -> None:
    with connect_once(tenancy_database.url) as connection:
        found = connection.execute(
            text("""SELECT rolname FROM pg_roles WHERE rolname = ANY (:roles)
                    AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb)"""),
            {"roles": [*ROLES, "omniops"]},
        ).all()
    assert found == []


def test_psql_sees_rows_as_the_program_and_none_as_a_client_without_claims(database: Database) -> None:
    with connect_once(database.url) as connection:
        made = make_customer(connection)
        connection.commit()
    # What psql does: no settings but the role's own.
    with psycopg.connect(database.url, autocommit=True) as session:
        assert session.execute("SELECT count(*) FROM customers").fetchone() == (1,)
        session.execute(f"SET ROLE {CLIENT}")
        assert session.execute("SELECT count(*) FROM customers").fetchone() == (0,)
        session.execute(
            "SELECT set_config('request.jwt.claims', %s, false)", [f'{{"customer_id": "{made.customer_id}"}}']
        )
        assert session.execute("SELECT count(*) FROM scrape_jobs").fetchone() == (1,)
        session.execute(f"SET ROLE {ANON}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT count(*) FROM customers")


def test_neither_client_role_can_become_the_service(tenancy_database: Database) -> None:
    with connect_once(tenancy_database.url) as connection:
        for role in (ANON, CLIENT):
            assert not connection.scalar(text("SELECT pg_has_role(:r, :s, 'MEMBER')"), {"r": role, "s": SERVICE})


@pytest.fixture
def supabase(empty_database: Database, cluster: Endpoints) -> Iterator[Database]:
    """A database as Supabase hands it over.

    Its roles exist and `service_role` has BYPASSRLS; whoever makes something in `public` gives all of it to all
    three; the owner may hand the roles on, and nothing more.
    """
    administer(
        cluster, f"ALTER ROLE {SERVICE} BYPASSRLS", f"GRANT {', '.join(ROLES)} TO omniops_owner WITH ADMIN OPTION"
    )
    with connect_once(empty_database.owner_url) as connection:
        for kind in ("TABLES", "SEQUENCES", "FUNCTIONS"):
            connection.execute(
                text(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON {kind} TO {', '.join(ROLES)}")
            )
        connection.commit()
    yield empty_database
    administer(cluster, f"ALTER ROLE {SERVICE} NOBYPASSRLS")


def test_on_supabases_roles_and_default_privileges_access_is_the_same(supabase: Database) -> None:
    migrate(supabase.owner_url, runtime_url=supabase.url)
    check_runtime_url(supabase.url)
    with two_customers(supabase.url) as (connection, tenants):
        assert list(violations(connection, tenants, bypass=True)) == []
        assert list(openings(connection)) == []
        assert list(grants_of(connection, ANON)) == []


def test_the_check_asks_about_the_role_in_force(tenancy_database: Database) -> None:
    with connect_once(tenancy_database.admin_url) as connection:
        connection.execute(text("SET LOCAL ROLE omniops"))
        check_runtime_role(connection)
        connection.execute(text("RESET ROLE"))
        with pytest.raises(UnsafeRole):
            check_runtime_role(connection)
