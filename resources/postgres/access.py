"""Who may do what in the permanent tier: roles, grants and row-level security, generated from the catalogue.

Two ways in, both enforced by Postgres:

- *client* access acts for one customer: role `authenticated`, with the customer's id in the transaction's
  `request.jwt.claims` (Supabase's convention). It sees and writes that customer's rows only; without a context, none.
  `anon` sees nothing.
- *service* access: role `service_role`, all rows, server side only, by explicit policies and never by BYPASSRLS.

The role that runs the program (`omniops`) is a member of all three: of `service_role` with its rights, of the other
two only to become them. The role that migrates owns the tables and is not the one that runs; row-level security is
FORCEd on it too, so what it has to do with rows (the statistics trigger) has a policy of its own.

The statements can be repeated: they are run after each migration, and `--verify` compares their outcome.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from resources.postgres.catalogue import TABLES, TableEntry
from resources.postgres.connection import DatabaseError, connect_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

ANON: Final = "anon"
CLIENT: Final = "authenticated"
SERVICE: Final = "service_role"
ROLES: Final = (ANON, CLIENT, SERVICE)

# The customer of the transaction, in a sub-select: Postgres reads it once for a query, not once for a row (a factor
# of ten thousand in Supabase's own measurement).
_CONTEXT: Final = "(SELECT public.current_customer_id())"

# Tables that the program itself may not write: only a trigger does.
_KEPT_BY_TRIGGERS: Final = frozenset({"scrape_job_stats"})

# What full-text search reads with its owner's rights, for the customer of its transaction alone: see `search_pages`.
_READ_BY_SEARCH: Final = frozenset({"scraped_pages", "website_content"})

# The platform's working state beside the business tables: leases, deliveries under way, how far something has come.
WORKING_TABLES: Final = (
    "crawl_workers", "page_links", "alert_deliveries", "watermarks", "embedding_models", "search_configurations",
    "page_versions", "page_html", "site_blocks", "waiting_vectors",
)  # fmt: skip

# Functions that client access needs: the policies' own, and what triggers and queries call on its behalf.
_FOR_CLIENTS: Final = frozenset({
    "current_customer_id", "scrape_job_may_move", "scrape_job_may_reopen", "scrape_job_active_seconds",
    "text_search_config",
    "message_queue_enqueue", "message_queue_reopen", "message_queue_claim", "message_queue_claim_next",
    "message_queue_acknowledge", "message_queue_fail", "message_queue_renew", "message_queue_redrive",
    "search_query", "search_pages",
})  # fmt: skip
# What only a trigger may call, with its owner's rights.
_FOR_TRIGGERS: Final = frozenset({"scrape_job_stats_apply", "keep_page_version"})


@dataclass(frozen=True, slots=True)
class Policy:
    """One row-level security policy.

    Attributes:
        table: in schema `public`.
        name: of the policy.
        role: whom it lets in; `owner` stands for the role that owns the table.
        command: `ALL`, `SELECT`, …
        using: which rows are seen.
        check: which rows may be written; None where it writes none.
    """

    table: str
    name: str
    role: str
    command: str
    using: str
    check: str | None

    def create(self) -> str:
        """The statement that makes it."""
        role = "CURRENT_USER" if self.role == "owner" else self.role
        check = f" WITH CHECK ({self.check})" if self.check else ""
        return (
            f"CREATE POLICY {self.name} ON public.{self.table} AS PERMISSIVE FOR {self.command} TO {role} "
            f"USING ({self.using}){check}"
        )


def policies_of(entry: TableEntry) -> Iterator[Policy]:
    """The policies of a table, by its catalogue entry."""
    if entry.tenant_column is not None and entry.client_access != "none":
        own = f"{entry.tenant_column} = {_CONTEXT}"
        if entry.client_access == "write":
            yield Policy(entry.name, "tenant", CLIENT, "ALL", own, own)
        else:
            yield Policy(entry.name, "tenant", CLIENT, "SELECT", own, None)
    yield Policy(entry.name, "service", SERVICE, "ALL", "true", "true")
    if entry.name in _KEPT_BY_TRIGGERS:
        # Its trigger function runs with its owner's rights, and row-level security is forced on the owner too.
        yield Policy(entry.name, "statistics_trigger", "owner", "ALL", "true", "true")
    if entry.name in _READ_BY_SEARCH:
        yield Policy(entry.name, "search", "owner", "SELECT", "true", None)
    if entry.name == "scrape_jobs":
        # The same function reads how long the job has been at work.
        yield Policy(entry.name, "statistics_trigger", "owner", "SELECT", "true", None)


def statements(tables: frozenset[str], runtime_role: str | None) -> Iterator[str]:
    """Everything that sets access, for the tables that there are.

    Args:
        tables: in schema `public`; a database that stands at an older revision has fewer.
        runtime_role: the role that runs the program, quoted; None where it is the owner.
    """
    for role in ROLES:
        # Roles belong to the cluster: another database's migration may make it in this very moment.
        yield (
            f"DO $$ BEGIN IF to_regrole('{role}') IS NULL THEN CREATE ROLE {role} NOLOGIN; END IF; "
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
    yield f"GRANT USAGE ON SCHEMA public TO {', '.join(ROLES)}"
    yield f"GRANT USAGE ON SCHEMA omniops_meta TO {SERVICE}"
    yield f"GRANT SELECT ON omniops_meta.alembic_version TO {SERVICE}"
    for name in WORKING_TABLES:
        # A database that stands at an older revision has fewer.
        yield (
            f"DO $$ BEGIN IF to_regclass('omniops_meta.{name}') IS NOT NULL THEN "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON omniops_meta.{name} TO {SERVICE}; END IF; END $$"
        )
    for entry in TABLES.values():
        if entry.name in tables:
            yield from _table_statements(entry)
    yield _partitions_statement()
    yield _functions_statement()
    if runtime_role is not None:
        yield from _runtime_statements(runtime_role)


def _table_statements(entry: TableEntry) -> Iterator[str]:
    table = f"public.{entry.name}"
    # Revoked first: Supabase grants everything on new tables to its roles by default.
    yield f"REVOKE ALL ON {table} FROM PUBLIC, {', '.join(ROLES)}"
    if entry.name in _KEPT_BY_TRIGGERS:
        yield f"GRANT SELECT ON {table} TO {SERVICE}"
    else:
        yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {SERVICE}"
    if entry.client_access == "write":
        yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {CLIENT}"
    elif entry.client_access == "read":
        yield f"GRANT SELECT ON {table} TO {CLIENT}"
    yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
    yield f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"
    yield (
        "DO $$ DECLARE p record; BEGIN FOR p IN SELECT polname FROM pg_policy "  # noqa: S608 - the catalogue's names
        f"WHERE polrelid = '{table}'::regclass LOOP "
        f"EXECUTE format('DROP POLICY %I ON {table}', p.polname); END LOOP; END $$"
    )
    for policy in policies_of(entry):
        yield policy.create()


def _partitions_statement() -> str:
    """Partitions are reached through their table, whose policies hold then; asked for by name they show nothing.

    A new one has no row-level security, and by Supabase's default privileges everybody's grants.
    """
    return f"""
        DO $$ DECLARE p record; BEGIN
            FOR p IN SELECT format('%I.%I', n.nspname, c.relname) AS name
                     FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                     WHERE c.relispartition AND c.relkind IN ('r', 'p') AND n.nspname = 'public'
                       AND c.relowner = current_user::regrole
            LOOP
                EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, {", ".join(ROLES)}', p.name);
                EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', p.name);
                EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', p.name);
            END LOOP;
        END $$"""  # noqa: S608 - names of the catalogue and of the migrations


def _functions_statement() -> str:
    """Functions of the migrations, and the sequences behind the catalogue's tables.

    Anybody may call a new function by default, and Supabase grants its roles all on functions and sequences.
    """
    made = ", ".join(f"'{name}'" for name in sorted(_migrations_functions()))
    clients = ", ".join(f"'{name}'" for name in sorted(_FOR_CLIENTS))
    triggers = ", ".join(f"'{name}'" for name in sorted(_FOR_TRIGGERS))
    tables = ", ".join(f"'{name}'" for name in sorted(TABLES))
    everybody = f"PUBLIC, {', '.join(ROLES)}"
    return f"""
        DO $$ DECLARE f record; BEGIN
            FOR f IN SELECT p.oid::regprocedure AS name, p.proname, p.prorettype = 'trigger'::regtype AS is_trigger
                     FROM pg_proc AS p
                     WHERE p.pronamespace = 'public'::regnamespace AND p.proowner = current_user::regrole
                       AND p.proname IN ({made})
            LOOP
                EXECUTE format('REVOKE ALL ON FUNCTION %s FROM {everybody}', f.name);
                IF NOT f.is_trigger AND f.proname NOT IN ({triggers}) THEN
                    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO {SERVICE}', f.name);
                END IF;
                IF f.proname IN ({clients}) THEN
                    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO {CLIENT}', f.name);
                END IF;
            END LOOP;
            FOR f IN SELECT s.oid::regclass AS name
                     FROM pg_class AS s JOIN pg_depend AS d ON d.objid = s.oid AND d.deptype IN ('a', 'i')
                     JOIN pg_class AS t ON t.oid = d.refobjid
                     WHERE s.relkind = 'S' AND t.relnamespace = 'public'::regnamespace AND t.relname IN ({tables})
                       AND s.relowner = current_user::regrole
            LOOP
                EXECUTE format('REVOKE ALL ON SEQUENCE %s FROM {everybody}', f.name);
            END LOOP;
        END $$"""  # noqa: S608 - names of the catalogue and of the migrations


@cache
def _migrations_functions() -> frozenset[str]:
    """Names of the functions in `public` that the migrations make; other services' functions are their own."""
    names: set[str] = set()
    for path in (Path(__file__).parent / "migrations" / "sql").glob("*.sql"):
        names.update(re.findall(r"CREATE (?:OR REPLACE )?FUNCTION public\.(\w+)", path.read_text(encoding="utf-8")))
    return frozenset(names)


def _runtime_statements(role: str) -> Iterator[str]:
    # From 16 on membership says for itself whether it is inherited; before, the member's attribute does.
    yield (
        "DO $$ BEGIN IF current_setting('server_version_num')::integer >= 160000 THEN "
        f"EXECUTE 'GRANT {SERVICE} TO {role} WITH INHERIT TRUE, SET TRUE'; "
        f"EXECUTE 'GRANT {CLIENT}, {ANON} TO {role} WITH INHERIT FALSE, SET TRUE'; "
        f"ELSE EXECUTE 'GRANT {SERVICE}, {CLIENT}, {ANON} TO {role}'; END IF; END $$"
    )
    # Dagster makes and alters its own tables.
    yield f"GRANT USAGE, CREATE ON SCHEMA dagster TO {role}"


def apply_access(connection: Connection, runtime_role: str | None) -> None:
    """Set roles, grants and policies as the catalogue has them, in the connection's transaction.

    Args:
        connection: as the role that owns the tables.
        runtime_role: the role that runs the program; None where it is the owner.
    """
    found = connection.scalars(
        text("""SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                AND relowner = current_user::regrole""")
    )
    quoted = None
    if runtime_role is not None:
        quoted = connection.dialect.identifier_preparer.quote_identifier(runtime_role)
    for statement in statements(frozenset(found), quoted):
        connection.exec_driver_sql(statement.replace("%", "%%"))


class UnsafeRole(DatabaseError):
    """The role that runs the program could get around row-level security."""


class MissingAccess(DatabaseError):
    """The role that runs the program has not been let in."""


def check_runtime_role(connection: Connection) -> None:
    """Refuse to run as a role that row-level security does not bind, or that was not let in.

    `service_role` with BYPASSRLS (as Supabase makes it) is tolerated: that right is not inherited.

    Raises:
        UnsafeRole: it is a superuser, has BYPASSRLS, or owns the tables (by itself or as a member of their owner).
        MissingAccess: the tables are there and it is no member of `service_role`.
    """
    row = connection.execute(
        text("""
            SELECT r.rolname, r.rolsuper, r.rolbypassrls, t.owns, t.there,
                   EXISTS (SELECT 1 FROM pg_roles AS s WHERE s.rolname = :service
                           AND pg_has_role(r.oid, s.oid, 'MEMBER')) AS let_in
            FROM pg_roles AS r CROSS JOIN (
                SELECT count(*) > 0 AS there,
                       coalesce(bool_or(pg_has_role(current_user, c.relowner, 'MEMBER')), false) AS owns
                FROM pg_class AS c
                WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                  AND c.relname = ANY (:tables)
            ) AS t
            WHERE r.rolname = current_user
        """),
        {"tables": list(TABLES), "service": SERVICE},
    ).one()
    reasons = [
        reason
        for reason, holds in (
            ("is a superuser", row.rolsuper),
            ("has BYPASSRLS", row.rolbypassrls),
            # Of a superuser this is always true, and not the point.
            ("owns the tables", row.owns and not row.rolsuper),
        )
        if holds
    ]
    if reasons:
        msg = (
            f"the program runs as role {row.rolname}, which {' and '.join(reasons)}: row-level security would not "
            "bind it, and one customer could see another's rows; let OMNIOPS_DATABASE_URL name another role, and "
            "OMNIOPS_OWNER_DATABASE_URL this one"
        )
        raise UnsafeRole(msg)
    if row.there and not row.let_in:
        msg = (
            f"role {row.rolname} may not use the tables: run `omniops migrate` with OMNIOPS_DATABASE_URL naming it "
            "and OMNIOPS_OWNER_DATABASE_URL their owner"
        )
        raise MissingAccess(msg)


def check_runtime_url(url: str) -> None:
    """`check_runtime_role`, on a connection of its own.

    Raises:
        DatabaseError: the database cannot be reached, or refuses.
    """
    with connect_once(url) as connection:
        check_runtime_role(connection)
