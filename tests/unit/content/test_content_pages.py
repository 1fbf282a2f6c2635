"""Pages that are not articles, of five invented sites: their facts stay, what surrounds them goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resources.content import SiteBoilerplate, extract, survey

PAGES = Path(__file__).parents[2] / "content_pages"
EXPECTED: dict[str, dict[str, Any]] = json.loads((PAGES / "expected.json").read_text())


def _html(name: str) -> bytes:
    return (PAGES / f"{name}.html").read_bytes()


def _folded(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def sites() -> dict[str, SiteBoilerplate]:
    found: dict[str, SiteBoilerplate] = {}
    for name, page in EXPECTED.items():
        found.setdefault(name.split("/")[0], SiteBoilerplate()).learn(survey(_html(name), page["url"]))
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_facts_stay(name: str, sites: dict[str, SiteBoilerplate]) -> None:
    page = EXPECTED[name]
    for known in (sites[name.split("/", maxsplit=1)[0]].known(), frozenset[int]()):
        read = extract(_html(name), page["url"], boilerplate=known)
        text = _folded(read.text)
        assert [fact for fact in page["facts"] if _folded(fact) not in text] == []
        assert (read.title, read.language, read.method) == (page["title"], page["language"], "fast")


def test_at_most_one_in_twenty_pieces_of_boilerplate_leaks(sites: dict[str, SiteBoilerplate]) -> None:
    leaks = []
    for name, page in EXPECTED.items():
        known = sites[name.split("/")[0]].known()
        text = _folded(extract(_html(name), page["url"], boilerplate=known).text)
        leaks += [(name, piece) for piece in page["boilerplate"] if _folded(piece) in text]
    assert len(leaks) <= 0.05 * sum(len(page["boilerplate"]) for page in EXPECTED.values()), leaks


def test_a_kind_of_page_that_the_site_has_not_shown_before_keeps_its_text(sites: dict[str, SiteBoilerplate]) -> None:
    html = _html("shop/contact").decode()
    start, end = html.index("<h1>Contact</h1>"), html.index("</div>", html.index("<h1>Contact</h1>"))
    job = "<h1>Kettle tester wanted</h1><p>Four days a week from March. Write to Olwen by the 20th.</p>"
    read = extract(
        html[:start] + job + html[end:], "https://harbourkettle.example/jobs", boilerplate=sites["shop"].known()
    )
    assert read.text == "Kettle tester wanted\nFour days a week from March. Write to Olwen by the 20th."


def test_a_page_of_which_the_site_repeats_everything_is_kept_and_says_so() -> None:
    html = "<html><body><h1>Closed for the season</h1><p>We are back in April with new boats.</p></body></html>"
    site = SiteBoilerplate()
    for _ in range(6):
        site.learn(survey(html, "https://a.example/"))
    read = extract(html, "https://a.example/x", boilerplate=site.known())
    assert read.method == "fallback"
    assert read.fallback_reason
    assert "back in April" in read.text
