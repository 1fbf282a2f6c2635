"""Ctrl-C while a connection is being closed: heard, and no traceback on the terminal."""

from __future__ import annotations

import subprocess
import sys

from resources.settings import PROJECT_ROOT

_PROGRAM = """
import sqlite3, sys
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from omniops_pipelines.cli.interruption import keep_interruptions_out_of_the_log

class Interrupted(sqlite3.Connection):
    def close(self):
        raise {error}

keep_interruptions_out_of_the_log()
connection = create_engine("sqlite://", poolclass=NullPool, creator=lambda: Interrupted(":memory:")).connect()
try:
    connection.close()
except KeyboardInterrupt:
    print("heard")
"""


def close_with(error: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(error=error)],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


def test_an_interruption_is_heard_and_leaves_no_traceback() -> None:
    assert close_with("KeyboardInterrupt") == ("heard\n", "")


def test_a_connection_that_cannot_be_closed_is_said_as_before() -> None:
    out, err = close_with("OSError('the way is gone')")
    assert out == ""
    assert "the way is gone" in err
