"""A server for each test, started in some hundredths of a second."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resources.redis import RedisWithFallback
from resources.redis.fallback import _every_fallback
from tests.support.valkey import Valkey

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def nobody_asks_on() -> Iterator[None]:
    """No client of a test goes on asking for its server when the test is over."""
    before = set(_every_fallback)
    yield
    for fallback in set(_every_fallback) - before:
        fallback.close()


@pytest.fixture
def stopped_valkey() -> Iterator[Valkey]:
    """A server that has not been started."""
    # Not tmp_path: the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        server = Valkey(Path(folder))
        yield server
        server.kill()


@pytest.fixture
def valkey(stopped_valkey: Valkey) -> Valkey:
    """A server of this test's own."""
    stopped_valkey.start()
    return stopped_valkey


@pytest.fixture
def client(valkey: Valkey) -> Iterator[RedisWithFallback]:
    """A client of that server."""
    made = RedisWithFallback(valkey.url)
    yield made
    made.close()
