"""Nothing in the schema is a way around row-level security, and what would be one is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from resources.postgres.access import ANON, CLIENT, SERVICE, apply_access
from resources.postgres.connection import connect_once
from tests.integration.tenancy.structure import grants_of, openings, policies_unlike_the_catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from tests.support.databases import Database

pytestmark = pytest.mark.integration


@pytest.fixture
def owner(tenancy_database: Database) -> Iterator[Connection]:
    """As the role that migrates, in a transaction that is rolled back."""
    with connect_once(tenancy_database.owner_url) as connection:
        yield connection
        connection.rollback()


def test_tables_views_functions_and_policies_leave_no_way_around(owner: Connection) -> None:
    assert list(openings(owner)) == []
    assert list(policies_unlike_the_catalogue(owner)) == []


def test_anon_and_everybody_hold_nothing(owner: Connection) -> None:
    assert list(grants_of(owner, ANON)) == []


def test_clients_may_call_only_what_policies_and_triggers_need(owner: Connection) -> None:
    held = {line.rsplit(" on ", 1)[1].split("(")[0] for line in grants_of(owner, CLIENT) if " EXECUTE on " in line}
    assert held == {
        "current_customer_id",
        "scrape_job_may_move",
        "scrape_job_may_reopen",
        "scrape_job_active_seconds",
        "text_search_config",
        "message_queue_enqueue",
        "message_queue_reopen",
        "message_queue_claim",
        "message_queue_claim_next",
        "message_queue_acknowledge",
        "message_queue_fail",
        "message_queue_renew",
        "message_queue_redrive",
        "search_query",
        "search_pages",
    }


def test_a_function_that_others_made_in_public_keeps_its_grants(owner: Connection) -> None:
    owner.execute(text("CREATE FUNCTION public.theirs() RETURNS int LANGUAGE sql AS 'SELECT 1'"))
    apply_access(owner, "omniops")
    assert list(grants_of(owner, ANON)) == ["anon holds EXECUTE on theirs()"]


def test_nobody_may_call_what_writes_the_statistics(owner: Connection) -> None:
    for role in (ANON, CLIENT, SERVICE):
        assert not [line for line in grants_of(owner, role) if "scrape_job_stats_apply" in line]


@pytest.mark.parametrize(
    ("statement", "noticed"),
    [
        ("CREATE TABLE public.x (id int)", "x has row-level security disabled"),
        ("ALTER TABLE orders NO FORCE ROW LEVEL SECURITY", "orders has row-level security not forced on its owner"),
        ("CREATE VIEW public.v AS SELECT * FROM orders", "view public.v runs with its owner's rights"),
        ("CREATE VIEW public.v WITH (security_invoker = off) AS SELECT * FROM orders", "needs security_invoker"),
        ("CREATE MATERIALIZED VIEW public.m AS SELECT * FROM orders", "view public.m is materialized"),
        (
            "CREATE FUNCTION public.f() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT 1 FROM orders'",
            "function f is SECURITY DEFINER",
        ),
        (
            "CREATE FUNCTION public.f() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = 'public' "
            "AS 'SELECT count(*) FROM orders'",
            "function f is SECURITY DEFINER",
        ),
        ("CREATE POLICY p ON orders USING (true)", "policy p of orders is for everybody"),
        (
            "CREATE POLICY p ON orders TO authenticated USING (customer_id = public.current_customer_id())",
            "policy p of orders reads the context once a row",
        ),
    ],
)
def test_an_opening_is_noticed(statement: str, noticed: str, owner: Connection) -> None:
    owner.execute(text(statement))
    found = list(openings(owner))
    assert len(found) == 1
    assert noticed in found[0]


def test_a_view_with_security_invoker_shows_a_tenants_own_rows_only(owner: Connection) -> None:
    owner.execute(text("CREATE VIEW public.v WITH (security_invoker = true) AS SELECT * FROM orders"))
    assert list(openings(owner)) == []


def test_a_partition_is_closed_by_name_even_under_default_privileges(owner: Connection) -> None:
    owner.execute(
        text(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO {ANON}, {CLIENT}, {SERVICE}")
    )
    owner.execute(text("CREATE TABLE public.parted (id int, customer_id uuid) PARTITION BY RANGE (id)"))
    owner.execute(text("CREATE TABLE public.parted_1 PARTITION OF public.parted FOR VALUES FROM (0) TO (10)"))
    owner.execute(text("INSERT INTO public.parted VALUES (1, gen_random_uuid())"))
    assert any("parted_1 (a partition)" in line for line in openings(owner))
    apply_access(owner, "omniops")
    assert not any("parted_1" in line for line in openings(owner))
    for role in (ANON, CLIENT, SERVICE):
        assert not [line for line in grants_of(owner, role) if line.endswith(" parted_1")]


def test_setting_access_again_changes_nothing(owner: Connection) -> None:
    shape = text("""
        SELECT tablename || '.' || policyname, roles::text, cmd, qual, with_check FROM pg_policies
        UNION ALL SELECT relname, relacl::text, relrowsecurity::text, relforcerowsecurity::text, ''
        FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')
        UNION ALL SELECT oid::regprocedure::text, proacl::text, '', '', '' FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace ORDER BY 1, 2
    """)
    before = owner.execute(shape).all()
    apply_access(owner, "omniops")
    assert owner.execute(shape).all() == before
