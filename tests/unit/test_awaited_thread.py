"""A thread is awaited to its end, whatever interrupts the one who waits."""

from __future__ import annotations

import threading

import pytest

from resources.awaited_thread import AwaitedThread
from tests.support.interruption import hears_interruptions, interrupt_after


def test_an_interruption_while_it_is_awaited_does_not_end_it() -> None:
    leave, left = threading.Event(), threading.Event()

    def work() -> None:
        leave.wait()
        left.set()

    thread = AwaitedThread(work, "awaited")
    thread.start()
    with hears_interruptions():
        interrupt_after(0.2)
        with pytest.raises(KeyboardInterrupt):
            thread.wait(30)
    assert not thread.wait(0)
    leave.set()
    assert thread.wait(30)
    assert left.is_set()


def test_its_own_error_is_its_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    thread = AwaitedThread(lambda number: 1 / number, "failing", (0,))
    thread.start()
    assert thread.wait(30)
    thread.join(30)
    assert len(said) == 1
