"""Row counts for materialisations: of the part of a table that a job touched, never of the whole table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Engine


@dataclass(frozen=True, slots=True)
class TableAsset:
    """A table that the platform keeps, as an asset.

    Attributes:
        name: of the table and of the asset.
        description: what stands in it.
        counted: SQL that counts its rows, with `:job_id` or `:customer_id`.
        scope: what is counted, in words.
    """

    name: str
    description: str
    counted: str
    scope: str


def count_rows(engine: Engine, table: TableAsset, *, job_id: str, customer_id: UUID | str) -> int:
    """Count the rows of a table that belong to the job or its customer."""
    with engine.connect() as connection:
        return int(connection.scalar(text(table.counted), {"job_id": job_id, "customer_id": str(customer_id)}) or 0)
