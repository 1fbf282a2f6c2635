"""Facts that a page declares for machines and may not show: price, availability, address, answers.

Of JSON-LD, microdata and OpenGraph. Only what the page is about is taken: the one product it declares, the questions
it answers, the date and place of an event, and on a contact page (or the home page) the address of the business.
"""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selectolax.lexbor import LexborHTMLParser

__all__ = ["business_facts", "declared_facts", "missing_facts"]

_MAX_FACTS: Final = 200
_MAX_VALUE: Final = 5_000
_TAG: Final = re.compile(r"<[^<>]*+>")
_CAPITAL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_PRICE: Final = re.compile(r"(\d+)(?:[.,](\d+))?(?: [a-z]{3})?", re.IGNORECASE).fullmatch
_THOUSANDS: Final = re.compile("(?<=\\d)[ .,'\xa0\u2019](?=\\d{3}(?!\\d))")
_HAS_PRICE: Final = re.compile(r"itemprop\s*=\s*[\"']?price").search
_PRODUCTS: Final = frozenset({"product", "productgroup", "individualproduct", "productmodel"})

Fact = tuple[str, str]
"""What it is, empty for a text that says so itself, and the value."""


def declared_facts(
    things: list[dict[str, Any]], metas: dict[str, str], tree: LexborHTMLParser, html: str
) -> list[Fact]:
    """Give the facts about what a page is about.

    Args:
        things: The objects of its JSON-LD.
        metas: Its meta tags, by name.
        tree: The page.
        html: The page's text, to see soon that it has no microdata.
    """
    facts: list[Fact] = []
    products = [thing for thing in things if _kinds(thing) & _PRODUCTS]
    if len(products) == 1:
        facts += _product(products[0])
    elif not products:
        price = metas.get("product:price:amount") or metas.get("og:price:amount")
        currency = metas.get("product:price:currency") or metas.get("og:price:currency")
        if price:
            facts += _price(price, currency)
        elif "itemprop" in html and _HAS_PRICE(html):
            facts += _microdata(tree)
    for thing in things:
        kinds = _kinds(thing)
        if "question" in kinds:
            facts += _question(thing)
        elif any(kind.endswith("event") for kind in kinds):
            facts += _event(thing)
    return facts[:_MAX_FACTS]


def business_facts(things: list[dict[str, Any]]) -> list[Fact]:
    """Give address, telephone and opening hours of the first business that is declared with any."""
    for thing in things:
        facts = [
            *_fact("Address", _address(thing.get("address"))),
            *_fact("Telephone", thing.get("telephone")),
            *_fact("Email", thing.get("email")),
        ]
        hours = thing.get("openingHours")
        for value in hours if isinstance(hours, list) else [hours]:
            facts += _fact("Opening hours", value)
        if facts:
            return facts[:_MAX_FACTS]
    return []


def missing_facts(facts: tuple[Fact, ...], text: str) -> list[str]:
    """Give the facts that a text does not have, as lines.

    Args:
        facts: Of `declared_facts`.
        text: What the page shows.
    """
    shown = " ".join(text.casefold().split())
    lines: list[str] = []
    for label, value in facts:
        if _is_shown(value, shown):
            continue
        lines.append(f"{label}: {value}" if label else value)
    return lines


def _is_shown(value: str, shown: str) -> bool:
    price = _PRICE(_THOUSANDS.sub("", value))
    if price is not None:
        cents = (price[2] or "").rstrip("0")
        after = rf"[.,]{cents}0*" if cents else r"(?:[.,]0+)?"
        return re.search(rf"(?<![\d.,]){price[1]}{after}(?!\d|[.,]\d)", _THOUSANDS.sub("", shown)) is not None
    return " ".join(value.casefold().split()) in shown


def _kinds(thing: dict[str, Any]) -> set[str]:
    kinds = thing.get("@type")
    values = kinds if isinstance(kinds, list) else [kinds]
    return {value.lower().rsplit("/", 1)[-1] for value in values if isinstance(value, str)}


def _fact(label: str, value: object) -> Iterator[Fact]:
    """Give the fact if the value is one."""
    if isinstance(value, dict):
        value = value.get("name")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and value:
        folded = " ".join(unescape(_TAG.sub(" ", value[:_MAX_VALUE])).split())
        if folded:
            yield label, folded


def _price(amount: object, currency: object) -> Iterator[Fact]:
    for _, value in _fact("", amount):
        for _, of in _fact("", currency) if currency else ():
            value = f"{value} {of}"  # noqa: PLW2901 - the same price
        yield "Price", value


def _offers(offers: object) -> Iterator[Fact]:
    values = offers if isinstance(offers, list) else [offers]
    for offer in values[:20]:
        if not isinstance(offer, dict):
            continue
        currency = offer.get("priceCurrency")
        specified = offer.get("priceSpecification")
        if isinstance(specified, list):
            specified = specified[0] if specified else None
        if isinstance(specified, dict) and "price" not in offer:
            yield from _price(specified.get("price"), specified.get("priceCurrency") or currency)
        for name in ("price", "lowPrice", "highPrice"):
            yield from _price(offer.get(name), currency)
        for _, value in _fact("", offer.get("availability")):
            yield "Availability", _spaced(value)


def _spaced(value: str) -> str:
    """Give "https://schema.org/InStock" as "In stock"."""
    return _CAPITAL.sub(" ", value.rsplit("/", 1)[-1]).capitalize()


def _product(thing: dict[str, Any]) -> Iterator[Fact]:
    yield from _offers(thing.get("offers"))
    yield from _fact("Brand", thing.get("brand"))
    yield from _fact("SKU", thing.get("sku"))
    for name in ("gtin", "gtin13", "gtin12", "gtin8", "mpn"):
        yield from _fact(name.upper(), thing.get(name))


def _question(thing: dict[str, Any]) -> Iterator[Fact]:
    yield from _fact("", thing.get("name"))
    answer = thing.get("acceptedAnswer")
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    if isinstance(answer, dict):
        yield from _fact("", answer.get("text"))


def _event(thing: dict[str, Any]) -> Iterator[Fact]:
    yield from _fact("Begins", thing.get("startDate"))
    yield from _fact("Ends", thing.get("endDate"))
    place = thing.get("location")
    yield from _fact("Place", place)
    if isinstance(place, dict):
        yield from _fact("Address", _address(place.get("address")))
    yield from _offers(thing.get("offers"))


def _address(value: object) -> str | None:
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return None
    names = ("streetAddress", "postalCode", "addressLocality", "addressRegion", "addressCountry")
    parts = [part for name in names for _, part in _fact("", value.get(name))]
    return ", ".join(parts) or None


def _microdata(tree: LexborHTMLParser) -> Iterator[Fact]:
    """Give price, availability and number of the one product that attributes describe."""
    found: dict[str, list[str]] = {}
    for node in tree.css("[itemprop]")[:2_000]:
        attributes = node.attributes
        name = attributes.get("itemprop") or ""
        value = attributes.get("content") or attributes.get("value") or attributes.get("href")
        if name in ("price", "priceCurrency", "availability", "sku") and value:
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    if any(len(values) > 1 for values in found.values()):
        return  # a list of products
    for price in found.get("price", ()):
        yield from _price(price, next(iter(found.get("priceCurrency", ())), None))
    for value in found.get("availability", ()):
        yield "Availability", _spaced(value)
    for value in found.get("sku", ()):
        yield from _fact("SKU", value)
