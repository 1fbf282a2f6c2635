"""How long a program waits for its database, as the program sees it.

Counted is every wait of psycopg's for its connection: from before a statement is made ready to be sent until its
complete result is there, and the same for BEGIN, COMMIT, ROLLBACK and the pool's ping. So it holds the server's work,
both ways through the socket, and the time until the program is run again, but nothing of SQLAlchemy's work on
statements and rows, and none of the program's own. Reading values out of a result that has come is the program's.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine


class DatabaseTime:
    """The waits of an engine's connections, by kinds of statement. For one thread.

    A wait is of the kind of the statement that was sent last: in a pipeline, that is what it waits for last.

    Args:
        engine: that has no connection yet.
        kinds: text that stands in a statement → its kind. What has none of them is of the kind `other`.
    """

    def __init__(self, engine: Engine, kinds: Mapping[str, str]) -> None:
        self._kinds = kinds
        self._kind = "other"
        self.milliseconds: dict[str, float] = defaultdict(float)
        ours = self

        class Cursor(psycopg.Cursor[Any]):
            def execute(self, query: Any, *arguments: Any, **named: Any) -> Any:
                ours.begins(str(query))
                return super().execute(query, *arguments, **named)

        class Connection(psycopg.Connection[Any]):
            def wait(self, *arguments: Any, **named: Any) -> Any:
                return ours.waited(super().wait, *arguments, **named)

        @event.listens_for(engine, "do_connect")
        def connect(_dialect: Any, _record: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
            return Connection.connect(*arguments, **named, cursor_factory=Cursor)

    def clear(self) -> None:
        """Begin at zero."""
        self.milliseconds.clear()

    def total(self) -> float:
        """Milliseconds since `clear`."""
        return sum(self.milliseconds.values())

    def begins(self, statement: str) -> None:
        self._kind = next((kind for part, kind in self._kinds.items() if part in statement), "other")

    def waited(self, wait: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return wait(*arguments, **named)
        finally:
            self.milliseconds[self._kind] += (time.perf_counter() - started) * 1_000
