"""Ctrl-C for this process, at a moment of the test's choice."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def hears_interruptions() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, though a shell that put the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt_after(seconds: float) -> None:
    """Send SIGINT to this process."""
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
