"""Links from an asset in the UI to the lines that define it."""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from resources.postgres import models
from resources.settings import PROJECT_ROOT, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Table


def code_link(what: Table | Callable[..., Any]) -> dict[str, dg.CodeReferencesMetadataValue]:
    """Metadata that leads to a table's model or to a function.

    Where `OMNIOPS_SOURCE_URL` says where the source can be read, the link leads there and tells nothing of this
    machine. Otherwise it opens the file in the editor of whoever runs the program, for which it needs the whole path;
    shown is the path from the project's root.
    """
    path, line = _place(what)
    inside = path.relative_to(PROJECT_ROOT).as_posix() if path.is_relative_to(PROJECT_ROOT) else path.name
    label = f"{inside}:{line}"
    source = Settings.from_environment().source_url
    with warnings.catch_warnings():
        # Pinned, so that a change of this interface cannot come unseen: the warning says nothing new at each load.
        warnings.simplefilter("ignore", dg.BetaWarning)
        reference: dg.LocalFileCodeReference | dg.UrlCodeReference
        if source is not None:
            reference = dg.UrlCodeReference(url=f"{source}/{inside}#L{line}", label=label)
        else:
            reference = dg.LocalFileCodeReference(file_path=str(path), line_number=line, label=label)
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference])}


def _place(what: Table | Callable[..., Any]) -> tuple[Path, int]:
    if callable(what):
        return Path(inspect.getsourcefile(what) or ""), inspect.getsourcelines(what)[1]
    return Path(models.__file__), _model_lines()[what.name]


@cache
def _model_lines() -> dict[str, int]:
    """The line of each model, by table."""
    lines = Path(models.__file__).read_text(encoding="utf-8").splitlines()
    return {line.split(" ", 1)[0]: number for number, line in enumerate(lines, 1) if line.endswith(" = Table(")}
