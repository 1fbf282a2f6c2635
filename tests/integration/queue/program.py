"""Programs that are killed: one that sends and one that works. Their notes are files, which a kill cannot take back.

A note is one `write` to a file opened for appending: it is there whole, or not at all.
"""

from __future__ import annotations

import fcntl
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

from resources.postgres.connection import DatabaseError, engine_for
from resources.postgres.message_queue import PersistentMessageQueue
from resources.postgres.queue_worker import QueueWorker
from resources.settings import QueueSettings

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from resources.postgres.queue_messages import QueuedMessage

# Longer than any pause that a busy machine makes, shorter than a test. A kill costs a message a try.
SETTINGS = QueueSettings(
    lease_seconds=4, max_tries=100, backoff_seconds=0.05, max_backoff_seconds=0.2, poll_seconds=0.2,
    reconnect_seconds=20,
)  # fmt: skip
SESSIONS = 3


def note(file: Path, line: str) -> None:
    """Append a line."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def notes(file: Path) -> list[str]:
    """The lines."""
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def send(url: str, folder: Path, customers: list[str]) -> None:
    """Send numbered messages, each until it is acknowledged, and note those that are."""
    engine = engine_for(url)
    acknowledged = folder / "acknowledged"
    queues = [
        (f"{customer}/s{n}", PersistentMessageQueue(True, customer, f"s{n}", engine=engine, settings=SETTINGS))
        for customer in customers
        for n in range(SESSIONS)
    ]
    next_number = {name: 0 for name, _ in queues}
    for line in notes(acknowledged):
        name, number = line.split()
        next_number[name] = int(number) + 1
    while True:
        name, queue = random.choice(queues)
        number = next_number[name]
        message = {
            "type": "chat",
            "key": f"{number:06}",
            "value": {"text": "x" * 200, "n": number},
            "timestamp": number,
        }
        while True:
            try:
                queue.enqueue(message)
                break
            except DatabaseError:
                time.sleep(0.05)
        note(acknowledged, f"{name} {number}")
        next_number[name] += 1
        time.sleep(0.002)


def work(url: str, folder: Path, _customers: list[str]) -> None:
    """Handle messages: each writes one row in the transaction of its acknowledgement."""

    def handler(given: QueuedMessage, connection: Connection) -> None:
        # Held by the process, so that a kill gives it back; who else has it, handles the same session.
        with (folder / f"{given.customer_id}-{given.session_id}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note(folder / "together", f"{given.session_id} {given.key}")
            connection.execute(
                text("INSERT INTO cart_operations (customer_id, session_id, operation, product_id) "
                     "VALUES (:c, :s, 'add', :k)"),
                {"c": given.customer_id, "s": given.session_id, "k": given.key},
            )  # fmt: skip
            time.sleep(random.random() * 0.002)

    QueueWorker(handler, concurrency=2, transactional=True, settings=SETTINGS, engine=engine_for(url)).run(
        threading.Event()
    )


if __name__ == "__main__":
    {"send": send, "work": work}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
