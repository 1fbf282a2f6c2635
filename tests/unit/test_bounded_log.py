"""What happens to many pages alike is said in a few lines."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from resources.bounded_log import FIRST, BoundedLog

if TYPE_CHECKING:
    import pytest

logger = logging.getLogger(__name__)


def make_log() -> BoundedLog:
    return BoundedLog(logger, logging.WARNING, "%d pages failed (%s)")


def test_the_first_are_named_and_the_others_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = make_log()
    for number in range(100_000):
        log.note("crash", "page %d crashed", number)
    assert caplog.messages[:FIRST] == ["page 0 crashed", "page 1 crashed", "page 2 crashed"]
    doubled = [f"{2**power} pages failed (crash)" for power in range(2, 17)]
    assert caplog.messages[FIRST:] == doubled
    log.close()
    log.close()
    assert caplog.messages[FIRST:] == [*doubled, "100000 pages failed (crash)"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert log.counts == {"crash": 100_000}


def test_each_kind_is_said_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    log = make_log()
    for kind, events in (("crash", 5), ("memory", 1), ("timeout", 8)):
        for _ in range(events):
            log.note(kind, "a page: %s", kind)
    log.close()
    # What was said with the fourth and the eighth is not said again at the end.
    crash = ["a page: crash"] * 3 + ["4 pages failed (crash)"]
    timeout = ["a page: timeout"] * 3 + ["4 pages failed (timeout)", "8 pages failed (timeout)"]
    assert caplog.messages == [*crash, "a page: memory", *timeout, "5 pages failed (crash)"]


def test_the_traceback_goes_with_the_first_only(caplog: pytest.LogCaptureFixture) -> None:
    log = make_log()
    for _ in range(4):
        try:
            raise ValueError("odd")
        except ValueError as error:
            log.note(type(error).__name__, "a page failed", exc_info=True)
    assert [record.exc_info is not None for record in caplog.records] == [True, True, True, False]


def test_threads_are_counted_together(caplog: pytest.LogCaptureFixture) -> None:
    log = make_log()
    threads = [threading.Thread(target=lambda: [log.note("crash", "one") for _ in range(1_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert log.counts == {"crash": 4_000}
    assert len(caplog.messages) == FIRST + len([4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048])
