"""kill -9 of senders, workers, backends and the server: nothing acknowledged is lost, and all is done once, in order.

Long with OMNIOPS_SOAK_ROUNDS (`make soak`).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy.engine import make_url

from resources.postgres.connection import dispose_engines
from resources.postgres.migrate import migrate
from resources.services import acquire
from resources.services.layout import Layout
from resources.settings import PROJECT_ROOT, Settings
from tests.integration.queue.program import notes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resources.services import Endpoints

pytestmark = [pytest.mark.integration, pytest.mark.timeout(0)]

ROUNDS = int(os.environ.get("OMNIOPS_SOAK_ROUNDS", "5"))


class Programs:
    """One sender and two workers, real processes; each is started again when it was killed."""

    def __init__(self, url: str, folder: Path, customers: list[str]) -> None:
        self._arguments = [url, str(folder), *customers]
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("send", "work", "work again"):
            self.start(name)

    def start(self, name: str) -> None:
        self.running[name] = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.queue.program", name.split(maxsplit=1)[0], *self._arguments],
            cwd=PROJECT_ROOT, env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}, stderr=subprocess.PIPE,
        )  # fmt: skip

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        ended = process.poll()
        process.kill()
        _, said = process.communicate()
        # Nothing but a kill ends them.
        assert ended is None, f"{name} ended by itself: {said.decode()[-2000:]}"


@pytest.fixture
def own_cluster() -> Iterator[tuple[Endpoints, Layout]]:
    """A server that may be killed."""
    with tempfile.TemporaryDirectory(prefix="omniops-kills-", ignore_cleanup_errors=True) as folder:
        settings = Settings(home=Path(folder) / "home", database_url=None, owner_database_url=None, redis_url=None)
        with acquire(settings, redis=False) as endpoints:
            migrate(endpoints.owner_database_url, runtime_url=endpoints.database_url)
            yield endpoints, Layout(settings.home)
            dispose_engines()


def _postmaster(layout: Layout) -> int:
    return int((layout.postgres_data / "postmaster.pid").read_text().splitlines()[0])


def _ask(url: str, sql: str) -> list[tuple[object, ...]]:
    """An answer, however often the server has to be asked."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                return connection.execute(sql).fetchall()  # type: ignore[arg-type]
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "the server does not come back"
            time.sleep(0.05)


def _kill_a_backend(url: str) -> None:
    """Postgres takes that for a crash: all backends end, and it recovers."""
    rows = _ask(url, "SELECT pid FROM pg_stat_activity WHERE application_name = 'omniops' AND state IS NOT NULL")
    if rows:
        with suppress(ProcessLookupError):
            os.kill(int(str(random.choice(rows)[0])), signal.SIGKILL)


def test_whatever_is_killed_each_acknowledged_message_is_done_once_and_in_order(
    own_cluster: tuple[Endpoints, Layout], tmp_path: Path
) -> None:
    endpoints, layout = own_cluster
    # As the superuser, past row-level security.
    url = make_url(endpoints.database_url).set(username="postgres").render_as_string(hide_password=False)
    made = _ask(url, "INSERT INTO customers (name, slug) VALUES ('a', 'a'), ('b', 'b') RETURNING id")
    customers = [str(row[0]) for row in made]
    programs = Programs(endpoints.database_url, tmp_path, customers)
    _until(lambda: bool(_ask(url, "SELECT 1 FROM message_queue WHERE status = 'completed' LIMIT 1")))
    victims = ["work", "backend", "send", "server", "work again"]
    for number in range(ROUNDS):
        # Something has to be under way to be killed.
        before = len(notes(tmp_path / "acknowledged"))
        _until(lambda before=before: len(notes(tmp_path / "acknowledged")) > before + 20)
        time.sleep(random.uniform(0.0, 0.3))
        victim = victims[number % len(victims)]
        if victim == "backend":
            _kill_a_backend(url)
        elif victim == "server":
            os.kill(_postmaster(layout), signal.SIGKILL)
        else:
            programs.kill(victim)
            programs.start(victim)
    programs.kill("send")
    # The lease of a worker that was killed last has to run out first.
    _until(lambda: not _ask(url, "SELECT 1 FROM message_queue WHERE is_open LIMIT 1"), 90)
    for name in list(programs.running):
        programs.kill(name)

    acknowledged = set(notes(tmp_path / "acknowledged"))
    assert len(acknowledged) > 20 * ROUNDS
    rows = _ask(url, "SELECT customer_id || '/' || session_id, message_key::integer, status FROM message_queue")
    assert {str(status) for _, _, status in rows} == {"completed"}
    stored = {f"{session} {number}" for session, number, _ in rows}
    assert acknowledged <= stored
    # One that was killed between its commit and its note at most, for each kill of the sender.
    assert len(stored - acknowledged) <= ROUNDS
    effects: dict[str, list[int]] = defaultdict(list)
    for session, number in _ask(
        url, "SELECT customer_id || '/' || session_id, product_id::integer FROM cart_operations ORDER BY id"
    ):
        effects[str(session)].append(int(str(number)))
    # Exactly once, in order, and every one.
    assert effects == {session: list(range(len(done))) for session, done in effects.items()}
    assert {f"{session} {number}" for session, done in effects.items() for number in done} == stored
    assert notes(tmp_path / "together") == []


def _until(what: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
