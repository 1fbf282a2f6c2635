"""The message queue beside procrastinate and pgmq: the same database, the same messages, the same durability.

Written: one message a transaction, and batches. Handled by one worker whose handler does nothing, in two shapes: one
session of many messages (which must come in order) and many sessions of one message; each once in a quiet database
and once with an old snapshot held open for the whole run (which keeps Postgres from forgetting what is done).

- ours: `PersistentMessageQueue` and `QueueWorker`, under row-level security, every message claimed with a lease,
  acknowledged by itself, in the order of its session;
- procrastinate: `defer`, `batch_defer`, a worker with a concurrency of one; a session is its `lock`;
- pgmq: its SQL, `send`, `send_batch`, `read` of one message and `archive`; it knows no sessions, and one reader reads
  in order. It is an extension in SQL alone, not part of this project: give its file with --pgmq, or it is left out.

"CPU ms" is what Postgres spent on a message, all its processes: steadier than the rates where others use the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from rich.console import Console
from rich.table import Table
from sqlalchemy.engine import make_url

from bench.measure import cpu_of
from resources.postgres.connection import dispose_engines, engine_for
from resources.postgres.message_queue import PersistentMessageQueue
from resources.postgres.migrate import migrate
from resources.postgres.queue_worker import QueueWorker
from resources.services import acquire
from resources.services.layout import Layout
from resources.settings import QueueSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resources.services import Endpoints

MESSAGES = 100_000
WRITTEN = 3_000
BATCH = 500
WANTED_SHARE = 0.85
PGMQ = "https://raw.githubusercontent.com/pgmq/pgmq/main/pgmq-extension/sql/pgmq.sql"
_TEXT = "Where is my order? It was to come on Monday, and nobody has told me anything since. " * 2


def body_of(number: int) -> dict[str, Any]:
    """A chat message."""
    return {"text": _TEXT, "number": number}


class Contender(Protocol):
    """What is compared."""

    name: str

    def write(self, number: int) -> None:
        """Take one message, durably."""

    def write_batch(self, first: int, count: int) -> None:
        """Take messages in one transaction."""

    def fill(self, sessions: int, messages: int) -> None:
        """So many messages in so many sessions, in whatever way is fastest; not measured."""

    def handle(self, note: Callable[[], None]) -> None:
        """Handle all there is; `note` is called for each message."""

    def empty(self) -> None:
        """All away."""


class Ours:
    """This project's."""

    name = "omniops"

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._engine = engine_for(bench.url)
        row = bench.run("INSERT INTO customers (name, slug) VALUES ('c', 'c') RETURNING id")
        self._customer = row[0][0]
        self._settings = QueueSettings()
        self._queue = PersistentMessageQueue(
            True, self._customer, "session", engine=self._engine, settings=self._settings
        )

    def _message(self, number: int) -> dict[str, Any]:
        return {"type": "chat", "key": f"k{number}", "value": body_of(number), "timestamp": number}

    def write(self, number: int) -> None:
        self._queue.enqueue(self._message(number))

    def write_batch(self, first: int, count: int) -> None:
        self._queue.enqueue_many([self._message(n) for n in range(first, first + count)])

    def fill(self, sessions: int, messages: int) -> None:
        self._bench.run(
            """INSERT INTO message_queue (customer_id, session_id, message_key, message_data)
               SELECT %s, 's' || lpad(s::text, 7, '0'), 'k' || n,
                      jsonb_build_object('type', 'chat', 'key', 'k' || n, 'timestamp', n,
                                         'value', jsonb_build_object('text', %s::text, 'number', n))
               FROM generate_series(1, %s) AS n, generate_series(1, %s) AS s""",
            (self._customer, _TEXT, messages // sessions, sessions),
        )

    def handle(self, note: Callable[[], None]) -> None:
        QueueWorker(
            lambda _: note(), customer_id=self._customer, concurrency=1, settings=self._settings, engine=self._engine
        ).drain()

    def empty(self) -> None:
        self._bench.run("TRUNCATE message_queue")


class Replay(Ours):
    """This project's `replay_with_persistence`: one session, whose client sends what it had kept."""

    name = "omniops, replay"

    def __init__(self, bench: Bench, ours: Ours) -> None:
        self._bench, self._engine, self._settings = bench, ours._engine, ours._settings
        self._customer = ours._customer

    def handle(self, note: Callable[[], None]) -> None:
        queue = PersistentMessageQueue(True, self._customer, "s0000001", engine=self._engine, settings=self._settings)
        queue.replay_with_persistence(lambda _: note())


class Procrastinate:
    """What one would take in Python."""

    name = "procrastinate"

    def __init__(self, bench: Bench) -> None:
        import procrastinate

        logging.getLogger("procrastinate").setLevel(logging.WARNING)
        self._bench = bench
        self._library = procrastinate
        bench.run("CREATE SCHEMA procrastinate")
        place = {"conninfo": psycopg.conninfo.make_conninfo(bench.admin, options="-c search_path=procrastinate")}
        self._place = place
        writer = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(**place))
        writer.open()
        writer.schema_manager.apply_schema()
        self._writer = writer

    def _job(self, session: str) -> Any:
        return self._writer.configure_task("chat", lock=session, queue="q")

    def write(self, number: int) -> None:
        self._job("session").defer(message=body_of(number))

    def write_batch(self, first: int, count: int) -> None:
        self._job("session").batch_defer(*({"message": body_of(n)} for n in range(first, first + count)))

    def fill(self, sessions: int, messages: int) -> None:
        # Its triggers find their tables by the search path.
        self._bench.run(
            """INSERT INTO procrastinate.procrastinate_jobs (queue_name, task_name, lock, args)
               SELECT 'q', 'chat', 's' || s,
                      jsonb_build_object('message', jsonb_build_object('text', %s::text, 'number', n))
               FROM generate_series(1, %s) AS n, generate_series(1, %s) AS s""",
            (_TEXT, messages // sessions, sessions),
            self._place["conninfo"],
        )

    def handle(self, note: Callable[[], None]) -> None:
        app = self._library.App(connector=self._library.PsycopgConnector(**self._place))

        @app.task(name="chat", queue="q")
        async def chat(message: dict[str, Any]) -> None:
            del message
            note()

        async def work() -> None:
            async with app.open_async():
                await app.run_worker_async(
                    queues=["q"], wait=False, concurrency=1, listen_notify=False, install_signal_handlers=False
                )

        asyncio.run(work())

    def empty(self) -> None:
        self._bench.run("TRUNCATE procrastinate.procrastinate_jobs CASCADE")


class Pgmq:
    """What one would take in Postgres."""

    name = "pgmq"

    def __init__(self, bench: Bench, file: Path) -> None:
        self._bench = bench
        bench.run("CREATE SCHEMA pgmq")
        with psycopg.connect(bench.admin, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(file.read_bytes())
        bench.run("SELECT pgmq.create('q')")
        self._connection = psycopg.connect(bench.admin, autocommit=True)

    def write(self, number: int) -> None:
        self._connection.execute(
            "SELECT pgmq.send('q', %s::jsonb)", (psycopg.types.json.Jsonb(body_of(number)),)
        ).fetchone()

    def write_batch(self, first: int, count: int) -> None:
        messages = [psycopg.types.json.Jsonb(body_of(n)) for n in range(first, first + count)]
        self._connection.execute("SELECT pgmq.send_batch('q', %s::jsonb[])", (messages,)).fetchall()

    def fill(self, sessions: int, messages: int) -> None:
        del sessions
        self._bench.run(
            """SELECT count(*) FROM pgmq.send_batch('q', ARRAY(
                   SELECT jsonb_build_object('text', %s::text, 'number', n) FROM generate_series(1, %s) AS n))""",
            (_TEXT, messages),
        )

    def handle(self, note: Callable[[], None]) -> None:
        while True:
            row = self._connection.execute("SELECT msg_id, message FROM pgmq.read('q', 30, 1)").fetchone()
            if row is None:
                return
            note()
            self._connection.execute("SELECT pgmq.archive('q', %s::bigint)", (row[0],)).fetchone()

    def empty(self) -> None:
        self._bench.run("TRUNCATE pgmq.q_q")
        self._bench.run("TRUNCATE pgmq.a_q")


class Bench:
    """A migrated cluster and the contenders in it."""

    def __init__(self, endpoints: Endpoints, home: Path, pgmq: Path | None, console: Console) -> None:
        self.postmaster = int((Layout(home).postgres_data / "postmaster.pid").read_text().splitlines()[0])
        self.url = endpoints.database_url
        self.admin = make_url(endpoints.database_url).set(username="postgres").render_as_string(hide_password=False)
        ours = Ours(self)
        self.contenders: list[Contender] = [ours]
        try:
            self.contenders.append(Procrastinate(self))
        except ImportError:
            console.print('procrastinate is not installed (pip install -e ".[bench]"): left out')
        if pgmq is None:
            console.print(f"pgmq's SQL was not given (--pgmq FILE; {PGMQ}): left out")
        else:
            self.contenders.append(Pgmq(self, pgmq))
        self.replay: Contender = Replay(self, ours)

    def run(self, statement: str, parameters: Any = None, conninfo: str = "") -> list[Any]:
        """A statement as the superuser, in a transaction of its own."""
        with psycopg.connect(conninfo or self.admin, autocommit=True) as connection:
            cursor = connection.execute(statement, parameters)  # type: ignore[call-overload]
            return list(cursor.fetchall()) if cursor.description else []

    def at_rest(self) -> None:
        """Nothing is left of the one before."""
        for contender in self.contenders:
            contender.empty()
        self.run("VACUUM (ANALYZE)")
        self.run("CHECKPOINT")


def timed(times: list[float], call: Callable[[], object]) -> None:
    """Run it, and add its seconds."""
    begun = time.perf_counter()
    call()
    times.append(time.perf_counter() - begun)


def p99(times: list[float]) -> float:
    """Milliseconds that 99 of 100 stay under."""
    return sorted(times)[min(len(times) - 1, int(len(times) * 0.99))] * 1_000


@contextmanager
def old_snapshot(url: str, held: bool) -> Iterator[None]:
    """A transaction elsewhere that sees the database as it was, and thereby keeps what is done since."""
    if not held:
        yield
        return
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM pg_class")
        yield
        connection.rollback()


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("", *headings):
        table.add_column(heading, justify="right" if heading else "left")
    return table


def write(console: Console, bench: Bench, written: int, rounds: int) -> None:
    """Rates of writing."""
    table = _table(
        f"Writing {written:,} messages, each committed; and {written * 5:,} in batches of {BATCH}",
        "single/s", "p99, ms", "batched/s",
    )  # fmt: skip
    found: dict[str, tuple[list[float], list[float], list[float]]] = {c.name: ([], [], []) for c in bench.contenders}
    for _ in range(rounds):
        for contender in bench.contenders:
            bench.at_rest()
            single: list[float] = []
            for n in range(written):
                timed(single, lambda n=n, c=contender: c.write(n))  # type: ignore[misc]
            bench.at_rest()
            batched: list[float] = []
            for n in range(0, written * 5, BATCH):
                timed(batched, lambda n=n, c=contender: c.write_batch(n, BATCH))  # type: ignore[misc]
            rates = found[contender.name]
            rates[0].append(len(single) / sum(single))
            rates[1].append(p99(single))
            rates[2].append(len(batched) * BATCH / sum(batched))
    for name, (singles, tails, batches) in found.items():
        table.add_row(
            name,
            f"{statistics.median(singles):,.0f}",
            f"{statistics.median(tails):.2f}",
            f"{statistics.median(batches):,.0f}",
        )
    console.print(table)
    console.print()


def handle(console: Console, bench: Bench, messages: int, sessions: int, rounds: int) -> None:
    """Rates of handling, quiet and beside an old snapshot."""
    shape = "one session" if sessions == 1 else f"{sessions:,} sessions of one"
    table = _table(
        f"Handling {messages:,} messages, {shape}, one worker",
        "quiet/s", "p99, ms", "CPU ms", "old snapshot/s", "p99, ms", "CPU ms", "share",
    )  # fmt: skip
    contenders = [*bench.contenders, *([bench.replay] if sessions == 1 else [])]
    verdict = []
    for contender in contenders:
        rates: dict[bool, list[float]] = {False: [], True: []}
        tails: dict[bool, list[float]] = {False: [], True: []}
        cpu: dict[bool, list[float]] = {False: [], True: []}
        for number in range(rounds):
            for held in (False, True) if number % 2 == 0 else (True, False):
                bench.at_rest()
                contender.fill(sessions, messages)
                bench.run("VACUUM (ANALYZE)")
                bench.run("CHECKPOINT")
                at: list[float] = []
                with old_snapshot(bench.admin, held):
                    begun, used = time.perf_counter(), cpu_of(bench.postmaster)
                    contender.handle(lambda at=at: at.append(time.perf_counter()))  # type: ignore[misc]
                    seconds = time.perf_counter() - begun
                    # Until backends that ended have been waited for, their time is in neither sum.
                    time.sleep(0.3)
                    cpu[held].append((cpu_of(bench.postmaster) - used) * 1_000 / messages)
                if len(at) != messages:
                    msg = f"{contender.name} handled {len(at)} messages of {messages}"
                    raise RuntimeError(msg)
                rates[held].append(messages / seconds)
                tails[held].append(p99([after - before for before, after in pairwise(at)]))
        quiet, old = statistics.median(rates[False]), statistics.median(rates[True])
        table.add_row(
            contender.name,
            f"{quiet:,.0f}",
            f"{statistics.median(tails[False]):.2f}",
            f"{statistics.median(cpu[False]):.3f}",
            f"{old:,.0f}",
            f"{statistics.median(tails[True]):.2f}",
            f"{statistics.median(cpu[True]):.3f}",
            f"{old / quiet:.2f}",
        )
        if contender.name.startswith("omniops"):
            reached = "reached" if old / quiet >= WANTED_SHARE else "missed"
            verdict.append(f"{contender.name}: {old / quiet:.2f} of the quiet rate; wanted {WANTED_SHARE}: {reached}")
    console.print(table)
    console.print("\n".join(verdict) + "\n")


def main() -> int:
    """Run it; 1 if a count was wrong, never for its time."""
    parser = argparse.ArgumentParser(prog="python -m bench.queue", description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"to be handled (default {MESSAGES:,})")
    parser.add_argument("--written", type=int, default=WRITTEN, help=f"to be written, singly (default {WRITTEN:,})")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--only", help="contenders whose name begins so")
    parser.add_argument("--pgmq", type=Path, help=f"pgmq's SQL file ({PGMQ})")
    parser.add_argument("--quick", action="store_true", help="small: does it work at all?")
    options = parser.parse_args()
    if options.quick:
        options.messages, options.written, options.rounds = 2_000, 300, 1
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    started, load = time.time(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="omniops-bench-", ignore_cleanup_errors=True) as folder:
        settings = Settings(home=Path(folder) / "home", database_url=None, owner_database_url=None, redis_url=None)
        with acquire(settings, redis=False) as endpoints:
            migrate(endpoints.owner_database_url, runtime_url=endpoints.database_url)
            bench = Bench(endpoints, settings.home, options.pgmq, console)
            if options.only:
                bench.contenders = [c for c in bench.contenders if c.name.startswith(options.only)]
            write(console, bench, options.written, options.rounds)
            handle(console, bench, options.messages, 1, options.rounds)
            handle(console, bench, options.messages, options.messages, options.rounds)
            version = bench.run("SELECT current_setting('server_version'), current_setting('shared_buffers')")[0]
            dispose_engines()
    console.print("How it was run")
    console.print(
        f"  {time.strftime('%Y-%m-%d %H:%M', time.localtime(started))}, {time.time() - started:.0f} s in all"
    )
    console.print(
        f"  {platform.system()} {platform.release()}, {os.cpu_count()} cores, load at the start {load:.2f}, "
        f"PostgreSQL {version[0]}, shared_buffers {version[1]}, fsync on"
    )
    console.print(f"  command: python -m bench.queue {shlex.join(sys.argv[1:])}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
