"""How much of a table a question may read: all of a small one, a sample of a large one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resources.postgres.reports.storage import row_estimates

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection

# Rows that one question reads at most, about: a few seconds' work.
MAX_ROWS_READ: Final = 500_000


@dataclass(frozen=True, slots=True)
class Sampler:
    """Decides for each table whether all of it is read.

    Attributes:
        estimates: rows by table.
        max_rows: rows that are read at most, about.
    """

    estimates: Mapping[str, int]
    max_rows: int = MAX_ROWS_READ

    @classmethod
    def over(cls, connection: Connection, tables: Iterable[str], max_rows: int = MAX_ROWS_READ) -> Sampler:
        """By the statistics of the tables."""
        return cls(row_estimates(connection, tables), max_rows)

    def share(self, table: str) -> float:
        """The part of the table that is read, 1 being all of it."""
        return min(1.0, self.max_rows / max(self.estimates.get(table, 0), 1))

    def clause(self, table: str) -> str:
        """For a FROM clause, behind the table and its alias: nothing where all of it is read.

        Whole pages are taken by chance, so that the cost is that of the sample and not of the table.
        """
        share = self.share(table)
        return "" if share >= 1 else f"TABLESAMPLE SYSTEM ({100 * share:.6f})"

    def scaled(self, table: str, count: int) -> int:
        """A count among the rows that were read, as one of the table."""
        return round(count / self.share(table))
