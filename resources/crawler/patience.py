"""Waiting for a database that went away: what was asked of it is asked again, for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import DBAPIError

from resources.postgres.connection import DatabaseUnreachable, is_connection_lost

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

logger = logging.getLogger(__name__)

# How long a lost database is waited for before the crawl gives up (nothing is lost then either: it resumes).
DATABASE_PATIENCE_SECONDS = 60.0

_Answer = TypeVar("_Answer")


class Patience:
    """Calls the database in a thread, and again where the connection was lost.

    Args:
        executor: where calls run.
        reconnect: called in `executor` when the connection was lost, before the next try.
        seconds: how long a lost database is waited for.

    Attributes:
        losses: how often an answer was lost; what had been asked may have been done.
    """

    def __init__(
        self,
        executor: Executor,
        reconnect: Callable[[], None] | None = None,
        seconds: float = DATABASE_PATIENCE_SECONDS,
    ) -> None:
        self._executor = executor
        self._reconnect = reconnect
        self._seconds = seconds
        self.losses = 0

    async def call(self, function: Callable[..., _Answer], *arguments: object) -> _Answer:
        """What the function says; it may be called more than once.

        Raises:
            DatabaseUnreachable: the database stayed away.
            DBAPIError: it refused.
        """
        loop = asyncio.get_running_loop()
        give_up_at = time.monotonic() + self._seconds
        wait = 0.25
        while True:
            try:
                return await loop.run_in_executor(self._executor, function, *arguments)
            except (DBAPIError, DatabaseUnreachable) as error:
                if not (isinstance(error, DatabaseUnreachable) or is_connection_lost(error)):
                    raise
                self.losses += 1
                if time.monotonic() > give_up_at:
                    msg = (
                        f"the database has been away for {self._seconds:.0f} s: the crawl stops here, and what "
                        "was committed is safe; resume it with the same job id when the database is back"
                    )
                    raise DatabaseUnreachable(msg) from error
                logger.warning("the database went away; trying again in %.1f s", wait)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5.0)
                if self._reconnect is not None:
                    await loop.run_in_executor(self._executor, self._reconnect)
