"""What pages say: main content, metadata, what a site repeats.

What belongs here: everything between a page's HTML and the text that is stored and searched. What does not: fetching
it, and following its links (`resources.crawler`).

Importing this package loads nothing; the names below load their modules when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resources.content.boilerplate import SiteBoilerplate
    from resources.content.extraction import Extracted, extract, survey

__all__ = ["Extracted", "SiteBoilerplate", "extract", "survey"]

_MODULES = {
    "Extracted": "resources.content.extraction",
    "SiteBoilerplate": "resources.content.boilerplate",
    "extract": "resources.content.extraction",
    "survey": "resources.content.extraction",
}


def __getattr__(name: str) -> Any:
    try:
        module = _MODULES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(module), name)
