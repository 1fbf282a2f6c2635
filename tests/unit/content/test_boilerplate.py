"""What a site repeats: counted within bounds, kept as JSON, and never more than is sure."""

from __future__ import annotations

import json

from resources.content import SiteBoilerplate, survey
from resources.content.boilerplate import MAX_BLOCKS, MAX_KNOWN, MIN_PAGES

PAGE = (
    "<html><body class='p{n}'><header><p>Phone 1234</p></header><main><p>Phone 1234</p><p>Text {n}</p></main></body>"
)


def test_nothing_is_known_of_few_pages() -> None:
    site = SiteBoilerplate()
    for n in range(MIN_PAGES - 1):
        site.learn(survey(PAGE.format(n=n), "https://a.example/"))
    assert site.known() == frozenset()
    site.learn(survey(PAGE.format(n=99), "https://a.example/"))
    assert len(site.known()) == 2


def test_the_same_words_in_another_place_are_another_block() -> None:
    (in_header,) = survey("<body><header><p>Phone 1234</p></header></body>", "https://a.example/")
    (in_main,) = survey("<body><main><p>Phone 1234</p></main></body>", "https://a.example/")
    assert in_header != in_main
    assert -(2**63) <= in_header < 2**63


def test_digits_count_since_prices_are_facts() -> None:
    first = survey("<body><p>Price 4.99</p></body>", "https://a.example/")
    second = survey("<body><p>Price 5.99</p></body>", "https://a.example/")
    assert not first & second


def test_json_brings_back_what_is_known() -> None:
    site = SiteBoilerplate()
    for n in range(20):
        site.learn(survey(PAGE.format(n=n), "https://a.example/"))
    again = SiteBoilerplate.from_json(json.loads(json.dumps(site.to_json())))
    assert again.pages == 20
    assert again.known() == site.known()


def test_memory_and_json_are_bounded() -> None:
    site = SiteBoilerplate()
    frequent = frozenset(range(-100, 0))
    for n in range(60):
        site.learn(frozenset(range(n * 1_000, n * 1_000 + 1_000)) | frequent)
    assert len(site._counts) <= MAX_BLOCKS
    assert frequent <= site.known()
    assert len(site.to_json()["blocks"]) <= MAX_KNOWN


def test_json_that_is_no_such_thing_is_a_new_site() -> None:
    values: tuple[object, ...] = (None, [], {}, {"pages": -1, "blocks": []}, {"pages": True, "blocks": []})
    for value in values:
        assert SiteBoilerplate.from_json(value).pages == 0
    odd = SiteBoilerplate.from_json({"pages": 9, "blocks": [[1, 9], ["x", 2], [2**70, 3], [5, 99], None]})
    assert odd.known() == frozenset({1})
