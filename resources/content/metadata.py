"""What a page says of itself: title, description, canonical url, language, date of publication.

Read from the whole tree that lexbor made, before scripts leave it: a third of a millisecond.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from resources.content.declared import business_facts, declared_facts
from resources.crawler.urls import InvalidUrl, normalise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selectolax.lexbor import LexborHTMLParser

__all__ = ["Metadata", "is_contact_page", "read_metadata"]

_MAX_TITLE: Final = 1_000
_MAX_DESCRIPTION: Final = 5_000
_MAX_METAS: Final = 1_000
_MAX_JSON: Final = 512 * 1024
_MAX_JSON_SCRIPTS: Final = 20
_MAX_JSON_NODES: Final = 5_000
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{1,8})*").fullmatch
_PUBLISHED_NAMES: Final = (
    "article:published_time", "datepublished", "date", "dc.date.issued", "dcterms.issued", "dc.date",
    "dcterms.date", "dcterms.created", "pubdate", "publishdate", "publish-date", "publish_date", "parsely-pub-date",
    "sailthru.date", "og:published_time", "article.published", "citation_publication_date", "og:pubdate",
    "article_date_original", "originalpublicationdate",
)  # fmt: skip
_DATE: Final = re.compile(
    r"\s*(\d{4})-?(\d{2})-?(\d{2})(?:[T ]+(\d{2}):?(\d{2})(?::?(\d{2}))?(?:[.,]\d+)?\s*(Z|[+-]\d{2}:?\d{2})?)?"
).match
_CONTACT: Final = re.compile(
    r"\bcontact|\bkontakt|impressum|\bcontatt|\bcontato|お問い合わせ|联系|聯絡|контакт|اتصل|צור קשר", re.IGNORECASE
).search
_EARLIEST: Final = date(1990, 1, 1)
_MONTH_NAMES: Final = "jan feb mar apr may jun jul aug sep oct nov dec"
_MONTHS: Final = {name: number for number, name in enumerate(_MONTH_NAMES.split(), start=1)}
_WORDED: Final = re.compile(
    r"(?:(\d{1,2})(?:st|nd|rd|th)?\s+)?([A-Za-z]{3,9})\.?\s+(?:(\d{1,2})(?:st|nd|rd|th)?,?\s+)?(\d{4})\b"
)


@dataclass(slots=True)
class Metadata:
    """What a page's head says, and None where it says nothing or nothing credible."""

    title: str | None = None
    description: str | None = None
    canonical_url: str | None = None
    language: str | None = None
    """As written there, with ``-``: ``en``, ``de-AT``."""
    published: date | datetime | None = None
    """A datetime has a zone (UTC where the page gives none)."""
    base: str | None = None
    """What relative urls are relative to, if it is not the page."""
    facts: tuple[tuple[str, str], ...] = ()
    """What it declares of its product, event, questions or address: what it is, and the value."""
    kinds: frozenset[str] = frozenset()
    """Types that it declares (schema.org, OpenGraph), in lower case: ``article``, ``product``, ``faqpage``."""


def is_contact_page(metadata: Metadata) -> bool:
    """Tell whether a page calls itself the one that says where its owner is."""
    return "contactpage" in metadata.kinds or _CONTACT(metadata.title or "") is not None


def read_metadata(tree: LexborHTMLParser, html: str, url: str, now: datetime | None = None) -> Metadata:
    """Read what a page says of itself.

    Args:
        tree: The page as lexbor read it; it is not changed.
        html: The page, whose JSON-LD may have been cut off before lexbor read it.
        url: The page's own, for relative urls.
        now: What no date of publication may be after (a day later is let through, for zones).
    """
    found = Metadata()
    metas = _metas(tree)
    titles = tree.tags("title")
    # An svg has titles too, but the document's own stands in front of them.
    own_title = _folded(titles[0].text(), _MAX_TITLE) if titles else None
    found.title = own_title or _folded(metas.get("og:title") or metas.get("twitter:title"), _MAX_TITLE)
    if found.title is None:
        headings = tree.tags("h1")
        found.title = _folded(headings[0].text(separator=" "), _MAX_TITLE) if headings else None
    found.description = _folded(
        metas.get("description") or metas.get("og:description") or metas.get("twitter:description"), _MAX_DESCRIPTION
    )
    for node in tree.tags("base")[:1]:
        found.base = _url(node.attributes.get("href"), url)
    found.canonical_url = _canonical(tree, found.base or url) or _url(metas.get("og:url"), url)
    found.language = _language(tree, metas)
    kinds: set[str] = set()
    if metas.get("og:type"):
        kinds.add(metas["og:type"].strip().lower()[:40])
    latest = (now or datetime.now(UTC)) + timedelta(days=1)
    found.published = next((d for name in _PUBLISHED_NAMES if (d := read_date(metas.get(name), latest))), None)
    things = list(_json_nodes(html))
    for thing in things:
        kinds.update(_types(thing))
        if found.published is None:
            found.published = read_date(thing.get("datePublished"), latest)
        if found.title is None:
            found.title = _folded(_string(thing.get("headline")), _MAX_TITLE)
    if found.published is None:
        found.published = _published_in_body(tree, latest)
    found.kinds = frozenset(kinds)
    facts = declared_facts(things, metas, tree, html)
    is_home = urlsplit(url).path in ("", "/") and not any("article" in k or "posting" in k for k in kinds)
    if things and (is_home or is_contact_page(found)):
        facts += business_facts(things)
    found.facts = tuple(dict.fromkeys(facts))
    return found


def _metas(tree: LexborHTMLParser) -> dict[str, str]:
    """Give the meta tags, the first with content of each name; names in lower case."""
    metas: dict[str, str] = {}
    for meta in tree.tags("meta")[:_MAX_METAS]:
        attributes = meta.attributes
        name = attributes.get("property") or attributes.get("name") or attributes.get("itemprop")
        if not name and (equivalent := attributes.get("http-equiv")):
            name = "http-equiv:" + equivalent
        content = attributes.get("content")
        if name and content and not content.isspace():
            metas.setdefault(name.strip().lower(), content)
    return metas


def _folded(text: str | None, limit: int) -> str | None:
    if not text:
        return None
    return " ".join(text[: 4 * limit].split())[:limit] or None


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _url(target: str | None, url: str) -> str | None:
    if not target:
        return None
    try:
        return normalise(target, url)
    except InvalidUrl:
        return None


def _canonical(tree: LexborHTMLParser, base: str) -> str | None:
    for node in tree.tags("link")[:_MAX_METAS]:
        if "canonical" in (node.attributes.get("rel") or "").lower().split():
            canonical = _url(node.attributes.get("href"), base)
            if canonical is not None:
                return canonical
    return None


def _language(tree: LexborHTMLParser, metas: dict[str, str]) -> str | None:
    root = tree.root
    attributes = root.attributes if root is not None else {}
    body = tree.body
    candidates = (
        attributes.get("lang"),
        attributes.get("xml:lang"),
        metas.get("http-equiv:content-language"),
        metas.get("content-language"),
        metas.get("language"),
        metas.get("inlanguage"),
        metas.get("og:locale"),
        body.attributes.get("lang") if body is not None else None,
    )
    for candidate in candidates:
        language = (candidate or "").split(",")[0].strip().replace("_", "-")
        if language and len(language) <= 35 and _LANGUAGE(language):
            return language
    return None


# ------------------------------------------------------------------------------------------ dates


def read_date(value: object, latest: datetime) -> date | datetime | None:
    """Read a date as pages write it: ISO 8601, or English with the month's name.

    Returns:
        None for what is no date, is before 1990, or after `latest`.
    """
    if not isinstance(value, str) or not value or len(value) > 100:
        return None
    match = _DATE(value)
    if match is None:
        return _worded(value, latest)
    year, month, day, hour, minute, second, zone = match.groups()
    try:
        if hour is None:
            found = date(int(year), int(month), int(day))
            return found if _EARLIEST <= found <= latest.date() else None
        zone_text = "+00:00" if zone in (None, "Z") else (zone if ":" in zone else zone[:3] + ":" + zone[3:])
        moment = datetime.fromisoformat(f"{year}-{month}-{day}T{hour}:{minute}:{second or '00'}{zone_text}")
    except ValueError:
        return None
    return moment if moment.date() >= _EARLIEST and moment <= latest else None


def _worded(value: str, latest: datetime) -> date | None:
    match = _WORDED.search(value)
    if match is None:
        return None
    before, name, after, year = match.groups()
    month = _MONTHS.get(name[:3].lower())
    day = before or after
    if month is None or day is None:
        return None
    try:
        found = date(int(year), month, int(day))
    except ValueError:
        return None
    return found if _EARLIEST <= found <= latest.date() else None


def _published_in_body(tree: LexborHTMLParser, latest: datetime) -> date | datetime | None:
    """Give the date of a time element that says it is the publication's, or of the only one there is."""
    times = tree.tags("time")[:50]
    for node in times:
        attributes = node.attributes
        marks = f"{attributes.get('itemprop') or ''} {attributes.get('class') or ''}".lower()
        if "pubdate" in attributes or "publish" in marks or "entry-date" in marks or "posted" in marks:
            found = read_date(attributes.get("datetime") or node.text(), latest)
            if found is not None:
                return found
    if len(times) == 1:
        return read_date(times[0].attributes.get("datetime"), latest)
    return None


# ------------------------------------------------------------------------------------------ JSON-LD


def _json_scripts(html: str) -> Iterator[str]:
    """Give the texts of the scripts of JSON-LD."""
    position = 0
    for _ in range(_MAX_JSON_SCRIPTS):
        mark = html.find("ld+json", position)
        if mark < 0:
            return
        start = html.find(">", mark) + 1
        end = html.find("</script", start)
        position = mark + 7
        if start and end > 0 and html.rfind("<script", max(0, mark - 300), mark) >= 0:
            position = end
            yield html[start:end]


def _json_nodes(html: str) -> Iterator[dict[str, Any]]:
    """Give the objects of the page's JSON-LD, those of articles first; what cannot be read is left out."""
    nodes: list[dict[str, Any]] = []
    for text in _json_scripts(html):
        if len(text) > _MAX_JSON:
            continue
        try:
            stack = [json.loads(text, strict=False)]
        except (ValueError, RecursionError):
            continue
        while stack and len(nodes) < _MAX_JSON_NODES:
            value = stack.pop()
            if isinstance(value, dict):
                nodes.append(value)
                stack.extend(v for k, v in value.items() if k in ("@graph", "mainEntity", "mainEntityOfPage"))
            elif isinstance(value, list):
                stack.extend(reversed(value[:100]))
    nodes.sort(key=lambda node: not any("article" in kind or "posting" in kind for kind in _types(node)))
    yield from nodes


def _types(node: dict[str, Any]) -> list[str]:
    kinds = node.get("@type")
    values = kinds if isinstance(kinds, list) else [kinds]
    return [value.lower()[:40] for value in values if isinstance(value, str)]
