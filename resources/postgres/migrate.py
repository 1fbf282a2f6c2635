"""Migrations: bring a database to this code's schema, or back, under a lock, in one transaction.

Alembic keeps the revisions (`migrations/versions`); its version table stands in `omniops_meta`, so that `public`
holds only the tables of the catalogue. Dagster's storage stands in schema `dagster` of the same database.

What is promised, each with its test:

- all of it or nothing: a migration that fails, in whatever statement, leaves the database as it was;
- one at a time: migrations, rollbacks and dry runs of one database wait for each other;
- a database that was migrated by a newer version is refused;
- no queue behind a queue: a statement that does not get its lock in time gives up, and with it everything, because
  while it waits, all who come after it wait too. The error names the session that was in the way.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from resources.postgres.access import apply_access
from resources.postgres.connection import DatabaseError, connect_once, redact, role_of
from resources.postgres.verify import Difference, differences_of, dump_access, dump_schema, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from resources.postgres.verify import Dump

META_SCHEMA = "omniops_meta"
DAGSTER_SCHEMA = "dagster"
BASE: Final = "base"

_FOLDER: Final = Path(__file__).parent / "migrations"
# Where revisions are looked for. Tests add a folder.
REVISION_FOLDERS: list[Path] = [_FOLDER / "versions"]

# One number for "migrating this database", known to every version of this code.
_MIGRATION_LOCK = 0x6F6D6E69

# Long beside any statement of the program, short beside a person's patience.
LOCK_WAIT_SECONDS: Final = 5.0

_VERBS: Final = {"missing": "dropped", "unexpected": "created", "different": "changed"}


@dataclass(frozen=True, slots=True)
class MigrationState:
    """Where a database stands.

    Attributes:
        current: revision applied, or None for an empty database.
        head: newest revision that this code knows.
        pending: revisions still to be applied, oldest first.
        known: False if `current` is not one of this code's revisions (the database is newer).
        revisions: all that this code knows, oldest first.
    """

    current: str | None
    head: str
    pending: tuple[str, ...]
    known: bool
    revisions: tuple[str, ...] = ()

    @property
    def up_to_date(self) -> bool:
        """True if nothing is to be done."""
        return self.current == self.head


@dataclass(frozen=True, slots=True)
class Change:
    """One object that a migration made, changed or dropped.

    Attributes:
        change: `created`, `changed` or `dropped`.
        kind: `table`, `column`, `index`, `function`, `trigger`, `policy`, …
        name: with its schema.
    """

    change: str
    kind: str
    name: str

    @property
    def table(self) -> str | None:
        """The table that it is part of, or is; None for functions and extensions."""
        if self.kind in ("function", "execute grant", "extension"):
            return None
        # `public.orders.status`; a grant's is `public.orders to anon`.
        return ".".join(self.name.partition(" to ")[0].split(".")[:2])


@dataclass(frozen=True, slots=True)
class Step:
    """One revision that was applied or undone; or, named `access`, the roles, grants and policies that were set.

    Attributes:
        revision: its name.
        title: its first sentence.
        direction: `up` or `down`.
        changes: what it did.
    """

    revision: str
    title: str
    direction: str
    changes: tuple[Change, ...]

    def by_table(self) -> Iterator[tuple[str, str]]:
        """What it did, table by table: the table (or `functions`, `extensions`), and what happened there."""
        grouped: dict[str, list[Change]] = {}
        for change in self.changes:
            grouped.setdefault(change.table or f"{change.kind}s", []).append(change)
        for place, changes in sorted(grouped.items(), key=lambda item: ("." not in item[0], item[0])):
            yield place, _in_words(place, changes)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {**asdict(self), "changes": [{**asdict(change), "table": change.table} for change in self.changes]}


def _in_words(place: str, changes: list[Change]) -> str:
    whole = [change for change in changes if change.kind == "table" and change.change != "changed"]
    parts = [whole[0].change] if whole else []
    for verb in ("created", "changed", "dropped"):
        for kind in dict.fromkeys(change.kind for change in changes):
            names = sorted(
                _short(place, change) for change in changes if (change.kind, change.change) == (kind, verb)
            )
            if not names or kind == "table" or (whole and kind == "row security"):
                continue
            if kind == "row security":
                parts.append("row-level security switched")
            elif kind == "execute grant":
                parts.append(f"{verb} of {len(names)} functions")
            elif kind in ("function", "extension"):
                parts.append(f"{verb} {', '.join(names)}")
            elif whole and kind not in ("index", "trigger"):
                # Of a whole table its indexes and triggers are worth their names; of its columns their number.
                parts.append(f"{len(names)} {_plural(kind, len(names))}")
            else:
                parts.append(f"{'' if whole else f'{verb} '}{_plural(kind, len(names))} {', '.join(names)}")
    return "; ".join(parts)


def _short(place: str, change: Change) -> str:
    """The name as it is read beside its table's; a function's without its parameters."""
    if change.table is None:
        return change.name.removeprefix("public.").partition("(")[0]
    return change.name.removeprefix(place).removeprefix(".").strip()


def _plural(kind: str, number: int) -> str:
    if number == 1:
        return kind
    return {"index": "indexes", "policy": "policies"}.get(kind, f"{kind}s")


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration, a rollback or a dry run did.

    Attributes:
        before: where the database stood.
        after: the revision where it stands (or, after a dry run, would stand); None: empty.
        steps: what was done, in order.
        sql: the statements, in order.
        rows_lost: for a rollback: rows of each table that was dropped, where it had any.
    """

    before: MigrationState
    after: str | None
    steps: tuple[Step, ...]
    sql: tuple[str, ...]
    rows_lost: dict[str, int]

    @property
    def pending(self) -> tuple[str, ...]:
        """Revisions that were pending before."""
        return self.before.pending


class SchemaNewerThanCode(DatabaseError):
    """The database was migrated by a newer version of this code."""


class UnknownRevision(DatabaseError):
    """A revision was named that there is not, or that a rollback cannot lead to."""


class MigrationFailed(DatabaseError):
    """A statement of a migration failed; the database is as it was."""


class MigrationBlocked(MigrationFailed):
    """Another session held a lock for too long; the database is as it was."""


class RowsWouldBeLost(DatabaseError):
    """A rollback would drop tables that hold rows, and nobody said that it may.

    Attributes:
        tables: the tables, with how many rows each has.
    """

    def __init__(self, revision: str, tables: dict[str, int]) -> None:
        self.tables = tables
        listed = ", ".join(f"{name} ({rows:,} row{'' if rows == 1 else 's'})" for name, rows in tables.items())
        super().__init__(
            f"going back to {revision} drops tables that hold rows: {listed}; nothing was changed: take a backup, "
            "and say --yes if they may go"
        )


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", os.pathsep.join(str(folder) for folder in REVISION_FOLDERS))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def _state(connection: Connection) -> MigrationState:
    script = ScriptDirectory.from_config(_config())
    head = script.get_current_head()
    if head is None:
        msg = "no migration was found beside resources/postgres/migrate.py: is the installation whole?"
        raise DatabaseError(msg)
    context = MigrationContext.configure(connection, opts={"version_table_schema": META_SCHEMA})
    current = context.get_current_revision()
    ordered = tuple(revision.revision for revision in script.walk_revisions())[::-1]
    if current is None:
        return MigrationState(None, head, ordered, known=True, revisions=ordered)
    if current not in ordered:
        return MigrationState(current, head, (), known=False, revisions=ordered)
    return MigrationState(current, head, ordered[ordered.index(current) + 1 :], known=True, revisions=ordered)


def migration_state(url: str) -> MigrationState:
    """Read where the database at `url` stands.

    Raises:
        DatabaseError: it cannot be reached.
    """
    with connect_once(url) as connection:
        return _state(connection)


def refuse_newer(state: MigrationState) -> None:
    """Go no further with a database that a newer version migrated.

    Raises:
        SchemaNewerThanCode: it stands at a revision that this code does not know.
    """
    if not state.known:
        msg = (
            f"the database stands at revision {state.current}, which this version does not know "
            f"(its newest is {state.head}): update omniops_pipelines"
        )
        raise SchemaNewerThanCode(msg)


class _Recorder:
    """Gathers the statements of a connection, and by revision what they did."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sql: list[str] = []
        self.steps: list[Step] = []
        self._state: Dump = {}
        self._silent = False
        event.listen(connection, "before_cursor_execute", self._saw)
        # Scripts go by the driver's own cursor: see `migrations.run_script`.
        connection.info["omniops_on_script"] = self._add

    def stop(self) -> None:
        event.remove(self.connection, "before_cursor_execute", self._saw)
        self.connection.info.pop("omniops_on_script", None)

    def _saw(self, _c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: bool) -> None:
        words = statement.split(None, 1)
        if not self._silent and words and words[0].upper() not in ("SELECT", "WITH", "SET", "SAVEPOINT", "SHOW"):
            # SQLAlchemy doubles percent signs for the driver.
            self._add(statement.replace("%%", "%"))

    def _add(self, statement: str) -> None:
        stripped = statement.strip()
        # A semicolon of its own line survives a comment at the end.
        self.sql.append(stripped if stripped.endswith(";") else f"{stripped};")

    def look(self) -> tuple[Change, ...]:
        """What changed since the last look."""
        self._silent = True
        try:
            now = {**dump_schema(self.connection), **dump_access(self.connection)}
        finally:
            self._silent = False
        changes = tuple(
            Change(_VERBS[d.problem], d.kind, d.name)
            for d in differences_of(self._state, now)
            # Alembic's and this module's own bookkeeping.
            if d.kind != "comment" and not d.name.startswith(f"{META_SCHEMA}.alembic_version")
        )
        self._state = now
        return changes

    def applied(self, *, ctx: Any, step: Any, heads: Any, run_args: Any) -> None:
        """Alembic's hook: a revision's statements have run."""
        del ctx, heads, run_args
        revision = step.up_revision
        self.steps.append(Step(revision.revision, revision.doc, "up" if step.is_upgrade else "down", self.look()))


_WHO_WAITS: Final = text("""
    SELECT a.pid, a.usename, a.application_name, to_char(a.xact_start, 'HH24:MI:SS') AS since, a.state,
           (SELECT string_agg(DISTINCT n.nspname || '.' || c.relname, ', ')
            FROM pg_locks AS w JOIN pg_class AS c ON c.oid = w.relation
            JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE w.pid = :waiter AND NOT w.granted) AS wanted
    FROM unnest(pg_blocking_pids(:waiter)) AS b (pid) JOIN pg_stat_activity AS a ON a.pid = b.pid
    WHERE a.pid <> pg_backend_pid()
""")


class _LockWatch:
    """Looks from a second connection who is in a migration's way: afterwards it cannot be asked any more."""

    def __init__(self, url: str, backend: int) -> None:
        self._url, self._backend = url, backend
        self._stop = threading.Event()
        self._seen: tuple[str, str] | None = None
        self._thread = threading.Thread(target=self._look, name="omniops-lock-watch", daemon=True)

    def __enter__(self) -> _LockWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _look(self) -> None:
        try:
            # A migration without waits is over before this opens a connection.
            if self._stop.wait(0.2):
                return
            with connect_once(self._url) as connection:
                while True:
                    rows = connection.execute(_WHO_WAITS, {"waiter": self._backend}).all()
                    connection.rollback()
                    if rows:
                        sessions = "; ".join(
                            f"session {row.pid} ({row.application_name or 'no name'}, role {row.usename}, "
                            f"{row.state or 'working'}, in its transaction since {row.since or 'a while'})"
                            for row in rows
                        )
                        self._seen = (rows[0].wanted or "a table", sessions)
                    if self._stop.wait(0.2):
                        return
        except DatabaseError:
            # The error will say less; the migration itself does not depend on it.
            return

    def sentence(self, seconds: float) -> str:
        """What was waited for, and who had it."""
        if self._seen is None:
            return f"a table that it needs was locked for more than {seconds:g} s"
        return f"{self._seen[0]} was locked for more than {seconds:g} s by {self._seen[1]}"


def _silently(_: str) -> None:
    """Say nothing."""


@contextmanager
def _locked(
    url: str, what: str, say: Callable[[str], None], lock_wait_seconds: float
) -> Iterator[tuple[Connection, MigrationState]]:
    """A transaction that no other migration of this database shares; rolled back unless the block commits."""
    with ExitStack() as stack:
        connection = stack.enter_context(connect_once(url))
        if not connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK}):
            say(f"{redact(url)}: waiting for another migration of this database to end ({_holder(connection)})")
            connection.scalar(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        # What waits for the lock above waits on purpose; what waits for a table would hold up everybody.
        connection.execute(
            text("SELECT set_config('lock_timeout', :ms, true)"), {"ms": str(max(1, round(lock_wait_seconds * 1000)))}
        )
        state = _state(connection)
        refuse_newer(state)
        backend = int(connection.scalar(text("SELECT pg_backend_pid()")) or 0)
        watch = stack.enter_context(_LockWatch(url, backend))
        try:
            yield connection, state
        except (DBAPIError, psycopg.Error) as error:
            original = error.orig if isinstance(error, DBAPIError) else error
            reason = str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__
            code = getattr(original, "sqlstate", None)
            if code in ("55P03", "40P01"):
                msg = (
                    f"{what} gave up, because {watch.sentence(lock_wait_seconds)}; nothing was changed: let that "
                    "session end (a running crawl can be paused: `omniops jobs list`, `omniops jobs pause`), "
                    "or end it with SELECT pg_terminate_backend(…), and try again"
                )
                raise MigrationBlocked(msg) from error
            if code is None or str(code).startswith(("08", "57P")):
                if isinstance(error, DBAPIError):
                    raise
                msg = f"{what}: the database stopped answering ({reason}); nothing was changed"
                raise MigrationFailed(msg) from error
            msg = f"{what} failed and nothing was changed: {reason}"
            raise MigrationFailed(msg) from error


def _holder(connection: Connection) -> str:
    row = connection.execute(
        text("""
            SELECT a.pid, a.application_name, a.usename, to_char(a.xact_start, 'HH24:MI:SS') AS since
            FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
            WHERE l.locktype = 'advisory' AND l.granted AND l.objid = CAST(:key AS oid) AND l.classid = 0
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) LIMIT 1
        """),
        {"key": _MIGRATION_LOCK},
    ).one_or_none()
    if row is None:
        return "it has just ended"
    return f"session {row.pid}, role {row.usename}, since {row.since or 'a while'}"


def _upgrade(connection: Connection, owner_url: str, runtime_url: str | None, state: MigrationState) -> Migration:
    recorder = _Recorder(connection)
    try:
        for schema in (META_SCHEMA, DAGSTER_SCHEMA):
            # Asked first: IF NOT EXISTS still wants the right to create.
            if not connection.scalar(text("SELECT to_regnamespace(:name) IS NOT NULL"), {"name": schema}):
                connection.execute(text(f"CREATE SCHEMA {schema}"))
        recorder.look()
        if state.pending:
            config = _config(connection)
            config.attributes["on_version_apply"] = recorder.applied
            command.upgrade(config, "head")
        runtime_role = role_of(runtime_url) if runtime_url is not None else None
        apply_access(connection, runtime_role if runtime_role != role_of(owner_url) else None)
        changes = recorder.look()
        if changes:
            recorder.steps.append(Step("access", "Roles, grants and policies, by the catalogue.", "up", changes))
        return Migration(state, state.head, tuple(recorder.steps), tuple(recorder.sql), {})
    finally:
        recorder.stop()


def migrate(
    owner_url: str,
    *,
    runtime_url: str | None = None,
    say: Callable[[str], None] = _silently,
    lock_wait_seconds: float = LOCK_WAIT_SECONDS,
) -> Migration:
    """Apply what is pending, all of it or nothing, and let the runtime role in.

    Two migrations at once wait for each other. The schemas for Alembic and for Dagster's storage are made where
    they are missing.

    Args:
        owner_url: the role that owns the schema.
        runtime_url: the role that runs the program; where it is another one, it is granted what it needs.
        say: is told what it waits for.
        lock_wait_seconds: how long a statement may wait for a table that others use.

    Raises:
        DatabaseError: it cannot be reached.
        MigrationBlocked: another session was in the way for too long.
        MigrationFailed: a statement failed.
        SchemaNewerThanCode: it stands at a revision that this code does not know.
    """
    with _locked(owner_url, "the migration", say, lock_wait_seconds) as (connection, state):
        done = _upgrade(connection, owner_url, runtime_url, state)
        connection.commit()
    return done


def dry_run(
    owner_url: str,
    *,
    runtime_url: str | None = None,
    say: Callable[[str], None] = _silently,
    lock_wait_seconds: float = LOCK_WAIT_SECONDS,
) -> Migration:
    """Do what `migrate` would do, look at the outcome, and take all of it back.

    Args and errors are those of `migrate`.
    """
    with _locked(owner_url, "the dry run", say, lock_wait_seconds) as (connection, state):
        done = _upgrade(connection, owner_url, runtime_url, state)
        connection.rollback()
    return done


def verify_database(owner_url: str, *, runtime_url: str | None = None) -> list[Difference]:
    """Compare the live database with this code: see `resources.postgres.verify`.

    A database that is not at the newest revision has that one difference.

    Raises:
        SchemaNewerThanCode: it stands at a revision that this code does not know.
    """
    with connect_once(owner_url) as connection:
        state = _state(connection)
        refuse_newer(state)
        if not state.up_to_date:
            return [Difference("revision", state.head, "different", state.head, state.current or "nothing")]
        runtime_role = role_of(runtime_url) if runtime_url is not None else None
        found = verify(connection, runtime_role if runtime_role != role_of(owner_url) else None)
        connection.rollback()
        return found


def _target(state: MigrationState, wanted: str | None) -> str | None:
    """The revision to go back to; None is an empty database."""
    if state.current is None:
        msg = "the database was never migrated: there is nothing to go back from"
        raise UnknownRevision(msg)
    place = state.revisions.index(state.current)
    if wanted is None:
        return state.revisions[place - 1] if place > 0 else None
    if wanted == BASE:
        return None
    if wanted not in state.revisions:
        msg = f"there is no revision {wanted!r}; there are: {', '.join((BASE, *state.revisions))}"
        raise UnknownRevision(msg)
    if state.revisions.index(wanted) > place:
        msg = f"the database stands at {state.current}, which is older than {wanted}: `omniops migrate` goes forward"
        raise UnknownRevision(msg)
    return wanted


def _rows_in(connection: Connection, table: str) -> int:
    # Row-level security is forced on the owner: without this it would count nothing. Rolled back with the savepoint.
    connection.execute(text(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY"))
    return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)  # noqa: S608 - a name that Postgres quoted


def _downgrade(connection: Connection, target: str | None) -> _Recorder:
    recorder = _Recorder(connection)
    try:
        recorder.look()
        config = _config(connection)
        config.attributes["on_version_apply"] = recorder.applied
        command.downgrade(config, target or BASE)
    finally:
        recorder.stop()
    return recorder


def rollback(
    owner_url: str,
    revision: str | None = None,
    *,
    discard_rows: bool = False,
    say: Callable[[str], None] = _silently,
    lock_wait_seconds: float = LOCK_WAIT_SECONDS,
) -> Migration:
    """Go back one revision, or to a named one, all of it or nothing.

    Args:
        owner_url: the role that owns the schema.
        revision: where to; None is one back, `base` an empty database.
        discard_rows: also where that drops tables that hold rows.
        say: is told what it waits for.
        lock_wait_seconds: how long a statement may wait for a table that others use.

    Raises:
        DatabaseError: it cannot be reached.
        MigrationBlocked: another session was in the way for too long.
        MigrationFailed: a statement failed.
        RowsWouldBeLost: tables with rows would be dropped; it names them and counts their rows.
        SchemaNewerThanCode: it stands at a revision that this code does not know.
        UnknownRevision: there is no such revision, or it lies ahead.
    """
    with _locked(owner_url, "the rollback", say, lock_wait_seconds) as (connection, state):
        target = _target(state, revision)
        if target == state.current:
            return Migration(state, target, (), (), {})
        # Tried first, to see which tables go; going back to the savepoint gives their locks back.
        savepoint = connection.begin_nested()
        tried = _downgrade(connection, target)
        savepoint.rollback()
        dropped = _dropped_tables(tried.steps)
        savepoint = connection.begin_nested()
        counted = {table: _rows_in(connection, table) for table in dropped}
        lost = {table: rows for table, rows in counted.items() if rows}
        savepoint.rollback()
        if lost and not discard_rows:
            raise RowsWouldBeLost(target or BASE, lost)
        done = _downgrade(connection, target)
        connection.commit()
    return Migration(state, target, tuple(done.steps), tuple(done.sql), lost)


# What stands there is read from other tables' rows when it is wanted again.
_MADE_AGAIN: Final = frozenset({"omniops_meta.search_configurations", "omniops_meta.embedding_models"})


def _dropped_tables(steps: list[Step]) -> list[str]:
    changes = (change for step in steps for change in step.changes)
    names = {change.name for change in changes if (change.change, change.kind) == ("dropped", "table")}
    return sorted(names - _MADE_AGAIN)
