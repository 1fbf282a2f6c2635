"""What pages say: main content, metadata, what a site repeats; and finding it again by words and by meaning.

What belongs here: everything between a page's HTML and the text that is stored, and the search in it. What does not:
fetching it, and following its links (`resources.crawler`).

Importing this package loads nothing; the names below load their modules when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resources.content.boilerplate import SiteBoilerplate
    from resources.content.extraction import Extracted, extract, survey
    from resources.content.hybrid_search import SearchResult, SearchResults, search

__all__ = ["Extracted", "SearchResult", "SearchResults", "SiteBoilerplate", "extract", "search", "survey"]

_MODULES = {
    "Extracted": "resources.content.extraction",
    "SearchResult": "resources.content.hybrid_search",
    "SearchResults": "resources.content.hybrid_search",
    "SiteBoilerplate": "resources.content.boilerplate",
    "extract": "resources.content.extraction",
    "search": "resources.content.hybrid_search",
    "survey": "resources.content.extraction",
}


def __getattr__(name: str) -> Any:
    try:
        module = _MODULES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(module), name)
