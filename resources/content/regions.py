"""Which parts of a page are furniture: navigation, banners, footers, dialogs, hidden things."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from resources.content.dom import BLOCK_TAGS, HEADINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from resources.content.dom import Document, Element

__all__ = [
    "first_heading",
    "furniture_of",
    "is_footer",
    "is_note",
    "leads_elsewhere",
    "lists_itself",
    "named_as_furniture",
    "names_of",
]

_LANDMARKS: Final = """
    navigation banner contentinfo search dialog alertdialog menu menubar toolbar complementary tooltip
"""
_ROLES: Final = frozenset(_LANDMARKS.split())
_CONTROLS: Final = frozenset({"select", "input", "progress", "meter"})
_NEVER: Final = frozenset({"html", "body", "main", "article", "table", "tbody", "tr", "td", "th", "h1"})

# Words of class and id, split at what is no letter and where case changes.
_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])").findall
_FURNITURE: Final = """
    nav navbar navigation navi subnav sidenav topnav navbox menu submenu megamenu breadcrumb breadcrumbs footer
    cookie cookies consent gdpr newsletter subscribe signup paywall modal popup lightbox offcanvas drawer
    sidebar share sharing sharer social socials sharedaddy addthis addtoany related recommended recommendations
    recommendation outbrain taboola sponsored sponsor advert advertisement advertising ads adsense promo
    pagination pager skip skiplink toc minicart
    disqus comments comment commentlist respond reply replies gprd banner alert prompt advertorial
    trending popular teaser teasers rail outbrain taboola widget widgets cta sticky print noprint
"""
_NOT_OF_ARTICLES: Final = """
    byline author authors bio caption captions credit credits dateline date dates time timestamp meta tags tag tagged
    headline gallery slideshow carousel slider player video disclaimer copyright source photo image figcaption
    kicker published updated publish more readmore also next prev previous embedded embed callout toolbar tools
    breadcrumbs categories category profile signature follow subscription donate donation correction
"""
_ARTICLE_NAMES: Final = frozenset((_FURNITURE + _NOT_OF_ARTICLES).split())
_NAMES: Final = frozenset(_FURNITURE.split())
# What designers call parts of a page, and no visitor ever reads above one.
_UNSEEN_WORDS: Final = """
    navbar navi subnav sidenav topnav navbox megamenu footer modal popup lightbox offcanvas drawer sidebar
    pager rail widget widgets cta sticky print noprint banner alert prompt skip ads byline caption captions
    kicker dateline time date dates timestamp meta tag image photo slider carousel slideshow gallery player
    video embed embedded callout toolbar tools source updated publish headline next
"""
_UNSEEN: Final = frozenset(_UNSEEN_WORDS.split())
# What asides are called that belong to the text beside them.
_NOTES_WORDS: Final = """
    footnote footnotes endnote endnotes note notes admonition topic tip hint warning caution danger important info
    attention example definition abstract summary pullquote references bibliography
"""
_NOTES: Final = frozenset(_NOTES_WORDS.split())
_OF_A_LIST: Final = 3
"""Words up to which "Recommended for you" is the heading of a list; "Recommended third party tools" is a topic."""
_DENIALS: Final = frozenset({"has", "no", "with", "without", "is", "not", "hide", "hides", "above", "below"})
_HIDDEN_STYLE: Final = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE).search
_MAX_SIBLINGS: Final = 200
_MAY_HIDE: Final = re.compile("hidden|none").search
_CONTROLLED: Final = re.compile(r"aria-controls=\"([^\"]*+)\"").findall
_UNFOLDS: Final = re.compile(
    r"accordion|collaps|panel|answer|tab|faq|toggle|expand|detail|content|spoiler", re.IGNORECASE
).search


leads_elsewhere: Final = re.compile(
    r"(?:related|similar|recommended|recently viewed|you (?:may|might) also|customers also|people also|more from"
    r"|more like this|read (?:next|more|also)|share (?:this|on)|follow us|stay in touch|newsletter|subscribe|sign up"
    r"|popular (?:posts|articles|products)|most read|trending|latest (?:posts|news)|recent posts|navigation"
    r"|table of contents"
    r"|on this page|ähnliche|verwandte|das könnte|zuletzt angesehen|kunden (?:kauften|haben)|auch interessant|teilen"
    r"|weitere (?:artikel|produkte|beiträge)|folgen sie|folge uns|vous aimerez|produits similaires"
    r"|articles (?:liés|similaires)"
    r"|à lire aussi|partager|suivez-nous|productos relacionados|también te|artículos relacionados|compartir|síguenos"
    r"|prodotti correlati|potrebbe(?:ro)? (?:interessarti|piacerti)|condividi|gerelateerd"
    r"|anderen bekeken|misschien|delen"
    r"|produtos relacionados|veja também|leia (?:também|mais)|похожие|читайте также|関連)",
    re.IGNORECASE,
).match
"""Whether this is the heading of what leads elsewhere."""
lists_itself: Final = re.compile(r"table of contents|on this page|navigation", re.IGNORECASE).match
"""Whether this is the heading of links to the page's own parts."""
_LETTERS: Final = re.compile(r"[^\W_]+").findall


def names_of(element: Element) -> str:
    """Give an element's classes and its id.

    An id that only repeats the heading of its section, as documentation tools make it, says nothing of what the
    section is for: `source-code-encoding` is no source of a picture. One word may be either, unless it is one that
    no visitor reads above furniture: a section with the heading "Widget" is about widgets. What a dictionary's
    term is called says nothing either.
    """
    own = element.get("id")
    if not own:
        return element.get("class")
    if element.tag == "dt":
        return element.get("class")
    words = _LETTERS(own.lower())
    if (len(words) > 1 or own.lower() in _UNSEEN) and (heading := first_heading(element)) is not None:
        text = heading.words().removesuffix("¶").strip()
        said = _LETTERS(text.lower())
        number = said[: -len(words)]
        if (
            said[-len(words) :] == words
            and all(map(str.isdigit, number))
            and (len(words) > _OF_A_LIST or not leads_elsewhere(text))
        ):
            own = ""
    return f"{element.get('class')} {own}"


def first_heading(element: Element) -> Element | None:
    """Give the element itself, or the first of its children that says something, if that is a heading."""
    if element.tag in HEADINGS:
        return element
    for child in element.children:
        if isinstance(child, str):
            if not child.isspace():
                return None
        elif child.tag in HEADINGS:
            return child
        elif child.children:  # an empty one is the target of a link
            return None
    return None


@lru_cache(maxsize=20_000)
def named_as_furniture(names: str, *, in_article: bool = False) -> bool:
    """Tell whether an element's classes or id name it as furniture.

    Args:
        names: Classes and id.
        in_article: Also what goes with an article without being of it: captions, the author, tags.
    """
    furniture = _ARTICLE_NAMES if in_article else _NAMES
    for name in names.split():
        words = [word.lower() for word in _WORDS(name)]
        if words and (words[0] in furniture or words[-1] in furniture) and not _DENIALS.intersection(words):
            return True
    return False


def is_footer(element: Element) -> bool:
    """Tell whether an element is a footer by tag, role, class or id."""
    return (
        element.tag == "footer"
        or element.get("role") == "contentinfo"
        or ("footer" in element.raw and "footer" in _LETTERS(f"{element.get('class')} {element.get('id')}".lower()))
    )


def is_note(element: Element) -> bool:
    """Tell whether an aside belongs to the text beside it: footnotes, warnings, an abstract."""
    role = element.get("role")
    return (
        role == "note"
        or role.startswith("doc-")
        or not _NOTES.isdisjoint(_LETTERS(f"{element.get('class')} {element.get('id')}".lower()))
    )


def _is_hidden(element: Element, unfolded: frozenset[str]) -> bool:
    raw = element.raw
    if "hidden" not in raw and "none" not in raw:
        return False
    attributes = element.attributes
    hidden = (
        ("hidden" in attributes and attributes["hidden"] != "until-found")
        or ("style" in attributes and _HIDDEN_STYLE(attributes["style"]) is not None)
        or attributes.get("aria-hidden") == "true"
    )
    if not hidden:
        return False
    # What a click shows is content: answers of an FAQ, tabs of a product.
    return not (
        attributes.get("role") in ("tabpanel", "region")
        or attributes.get("id", "") in unfolded
        or _UNFOLDS(f"{attributes.get('class', '')} {attributes.get('id', '')}")
        or _unfolds_in_its_place(element)
    )


def _unfolds_in_its_place(element: Element) -> bool:
    """Tell what is hidden below its heading, or beside its like that is shown: an answer, a tab."""
    if element.tag == "dd":
        return True
    if element.parent is None or element.tag not in ("div", "section", "p", "ul", "ol", "table", "article", "li"):
        return False
    if len(element.parent.children) > _MAX_SIBLINGS:
        return False
    siblings = [child for child in element.parent.children if not isinstance(child, str)]
    index = siblings.index(element)
    if index and _asks(siblings[index - 1]):
        return True
    name = element.get("class")
    return name != "" and any(
        other.tag == element.tag and other.get("class") == name and _MAY_HIDE(other.raw) is None for other in siblings
    )


def _asks(element: Element) -> bool:
    """Tell whether an element is the heading of what is hidden below it: a heading, a button, a question."""
    return element.tag in HEADINGS or element.tag in ("button", "dt", "summary") or _is_question(element)


def _is_question(element: Element) -> bool:
    return element.words().rstrip("+-▼▾ ").endswith(("?", "\uff1f", "\u061f"))


def furniture_of(document: Document, is_large: Callable[[Element], bool]) -> set[Element]:
    """Give the outermost elements that are furniture by tag, role, class, id or being hidden.

    Args:
        document: The page.
        is_large: Whether an element holds so much of the page's text that it cannot be furniture.
    """
    unfolded = frozenset(name for names in _CONTROLLED(document.html) for name in names.split())
    root = document.root
    found: set[Element] = set()
    stack = [root]
    while stack:
        element = stack.pop()
        if element is not root and _is_furniture(element, unfolded) and not is_large(element):
            found.add(element)
            continue
        stack += [child for child in element.children if not isinstance(child, str)]
    return found


def _is_furniture(element: Element, unfolded: frozenset[str]) -> bool:  # noqa: PLR0911 - the cheap tests first
    tag = element.tag
    if tag in ("nav", "menu", "dialog", "search") or tag in _CONTROLS:
        return True
    if tag == "button":
        return not (
            any(a.tag in HEADINGS or a.tag in ("dt", "summary") for a in element.ancestors()) or _is_question(element)
        )
    if tag == "aside" and (is_note(element) or any(inner.tag == "pre" for inner in element.iter())):
        return False
    if tag in ("footer", "header", "aside"):
        return tag != "header" or not any(a.tag in ("main", "article") for a in element.ancestors())
    raw = element.raw
    if not raw:
        return False
    if "role=" in raw and element.get("role") in _ROLES:
        return True
    if _is_hidden(element, unfolded):
        return True
    if tag in _NEVER or (tag not in BLOCK_TAGS and tag != "span"):
        return False
    if "class=" in raw or "id=" in raw:
        return named_as_furniture(names_of(element))
    return False
