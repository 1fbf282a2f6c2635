"""Alembic's folder: `env.py`, one module for each revision, and the SQL files that they run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import op

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

HERE = Path(__file__).parent


def run_sql_file(name: str) -> None:
    """Run a file of `sql/` as it is, in the revision's transaction.

    The driver's own cursor is used, because it sends a text without parameters as one simple query: several
    statements, and no meaning for `:name` or `%` in function bodies.
    """
    text = (HERE / "sql" / name).read_text(encoding="utf-8")
    run_script(op.get_bind(), text)


def run_functions(name: str, functions: Iterable[str], *, replace: bool = False) -> None:
    """Make functions of an earlier file again, as it has them: a downgrade brings back what an upgrade replaced.

    Args:
        name: of the file.
        functions: their names.
        replace: in place of those that there are; a trigger's function cannot be dropped.
    """
    text = (HERE / "sql" / name).read_text(encoding="utf-8")
    for function in functions:
        found = re.search(
            rf"^CREATE (?:OR REPLACE )?FUNCTION public\.{function}\(.*?^\$\$;$", text, re.DOTALL | re.MULTILINE
        )
        if found is None:
            msg = f"{name} makes no function {function}"
            raise LookupError(msg)
        definition = found.group()
        if replace:
            definition = definition.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
        run_script(op.get_bind(), definition)
        run_script(op.get_bind(), f"REVOKE EXECUTE ON FUNCTION public.{function} FROM PUBLIC")


def run_script(connection: Connection, script: str) -> None:
    """Run several statements as one simple query, in the connection's transaction."""
    on_script = connection.info.get("omniops_on_script")
    if on_script is not None:
        on_script(script)
    cursor = connection.connection.cursor()
    try:
        cursor.execute(script)
    finally:
        cursor.close()
