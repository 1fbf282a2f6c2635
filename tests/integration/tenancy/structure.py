"""What the system catalogues say about tenancy: things that no cell can show, because nothing does them yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from resources.postgres.access import policies_of
from resources.postgres.catalogue import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

_OPEN_TABLES = """
    SELECT c.relname || CASE WHEN c.relispartition THEN ' (a partition)' ELSE '' END || ' has row-level security '
           || CASE WHEN NOT c.relrowsecurity THEN 'disabled' ELSE 'not forced on its owner' END
    FROM pg_class AS c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
    AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
"""
# In any schema: a view elsewhere reads the tables just as well.
_OPEN_VIEWS = """
    SELECT format('view %I.%I', n.nspname, c.relname)
           || CASE WHEN c.relkind = 'm' THEN ' is materialized: it has no row-level security'
                   ELSE ' runs with its owner''s rights: it needs security_invoker' END
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('v', 'm') AND n.nspname IN ('public', 'omniops_meta')
    AND NOT EXISTS (SELECT 1 FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
    AND NOT coalesce(c.relkind = 'v' AND (
        SELECT o.option_value::boolean FROM pg_options_to_table(c.reloptions) AS o
        WHERE o.option_name = 'security_invoker'), false)
"""
# Every function, and not only SECURITY DEFINER ones: a caller's search_path decides nothing here.
_OPEN_FUNCTIONS = """
    SELECT 'function ' || p.proname || ' is SECURITY DEFINER without an empty search_path'
    FROM pg_proc AS p WHERE p.pronamespace IN (
        SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'omniops_meta'))
    AND p.prosecdef AND NOT ('search_path=""' = ANY (coalesce(p.proconfig, '{}')))
"""
_POLICIES_OF_PUBLIC = """
    SELECT 'policy ' || p.polname || ' of ' || c.relname || ' is for everybody'
    FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid WHERE 0 = ANY (p.polroles)
"""
_CONTEXT_READ_FOR_EACH_ROW = """
    SELECT 'policy ' || policyname || ' of ' || tablename || ' reads the context once a row: ' || e.expression
    FROM pg_policies CROSS JOIN LATERAL (VALUES (qual), (with_check)) AS e (expression)
    WHERE schemaname = 'public' AND e.expression LIKE '%current_customer_id%'
    AND e.expression NOT LIKE '%( SELECT %current_customer_id()%'
"""
_GRANTS_OF = """
    SELECT format('%s holds %s on %s', CAST(:role AS text), a.privilege_type, o.name)
    FROM (
        SELECT c.oid::regclass::text AS name, c.relacl AS acl FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
        AND NOT EXISTS (SELECT 1 FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
        UNION ALL
        -- A function's default grants are not written down until somebody changes them.
        SELECT p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner)) FROM pg_proc AS p
        WHERE p.pronamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT 1 FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')
    ) AS o CROSS JOIN LATERAL aclexplode(o.acl) AS a
    WHERE a.grantee IN (0, to_regrole(CAST(:role AS text))::oid)
"""


def openings(connection: Connection) -> Iterator[str]:
    """Each table, partition, view, function and policy that could be a way around, in words."""
    for question in (
        _OPEN_TABLES,
        _OPEN_VIEWS,
        _OPEN_FUNCTIONS,
        _POLICIES_OF_PUBLIC,
        _CONTEXT_READ_FOR_EACH_ROW,
    ):
        yield from connection.scalars(text(question))


def grants_of(connection: Connection, role: str) -> Iterator[str]:
    """What a role, or everybody, holds on tables, views, sequences and functions of `public`, in words."""
    yield from connection.scalars(text(_GRANTS_OF), {"role": role})


def policies_unlike_the_catalogue(connection: Connection) -> Iterator[str]:
    """Policies that are missing, and such as nobody asked for."""
    owner = connection.scalar(text("SELECT tableowner FROM pg_tables WHERE tablename = 'customers'"))
    wanted = {
        (policy.table, policy.name, policy.command, str(owner) if policy.role == "owner" else policy.role)
        for entry in TABLES.values()
        for policy in policies_of(entry)
    }
    rows = connection.execute(
        text("SELECT tablename, policyname, cmd, unnest(roles)::text FROM pg_policies WHERE schemaname = 'public'")
    )
    for difference in sorted(wanted ^ {tuple(row) for row in rows}):
        yield "policy that is missing or not asked for: " + " ".join(difference)
