"""What is said, and what is not, where a person interrupts a command."""

from __future__ import annotations

import logging

# Where SQLAlchemy says that a connection could not be closed or reset; Dagster's storage uses the first.
_POOLS = ("sqlalchemy.pool.impl.NullPool", "sqlalchemy.pool.impl.QueuePool")


def _is_no_interruption(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    return error is None or isinstance(error, Exception)


def keep_interruptions_out_of_the_log() -> None:
    """Let no traceback be written of an interruption that comes while a connection is being closed.

    SQLAlchemy writes one, and raises the interruption again: it is heard all the same.
    """
    for name in _POOLS:
        logging.getLogger(name).addFilter(_is_no_interruption)
