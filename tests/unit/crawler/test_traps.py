"""Traps end, and large honest sites come through whole."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.crawler import traps
from resources.crawler.traps import TrapGuard, repeats_itself, shape_of, without_session
from resources.crawler.urls import normalise

SITE = "https://example.com"
TODAY = date(2026, 11, 28)


def judged(urls: list[str]) -> Counter[str | None]:
    guard = TrapGuard(TODAY)
    return Counter(guard.judge(normalise(url, SITE + "/")) for url in urls)


@pytest.mark.parametrize(
    "urls",
    [
        [f"/docs/api/module{n % 40}/x{n}.html" for n in range(5_000)],
        [f"/product/{n}" for n in range(50_000)],
        [f"/product.php?id={n}" for n in range(20_000)],
        [f"/index.php?option=com_content&view=article&id={n}&catid={n % 40}&Itemid={n % 7}" for n in range(20_000)],
        [f"/index.php?route=product/product&path={n % 50}_{n % 7}&product_id={n}" for n in range(20_000)],
        [f"/viewtopic.php?f={n % 30}&t={n}&start={15 * (n % 4)}" for n in range(20_000)],
        [f"/item/{n:032x}" for n in range(20_000)],
        [f"/doc?key={n:032x}" for n in range(5_000)],
        [f"/{2004 + n % 22}/{1 + n % 12:02d}/{1 + n % 28:02d}/a-title-{n}" for n in range(20_000)],
        [f"/{year}/{month:02d}/" for year in range(1995, 2027) for month in range(1, 13)],
        [f"/category/{n}?page={page}" for n in range(100) for page in range(1, 100)],
        [f"/category/{n}/{page}" for n in range(1_900, 2_150) for page in range(1, 13)],
        [f"/event/{n}" for n in range(1, 5_000)],
        [f"/en/{a}/{b}/en-{a}" for a in "abcdefgh" for b in "abcdefgh"],
        [f"/{a}/{b}/{c}/{d}" for a in range(9) for b in range(9) for c in range(9) for d in range(9)],
        [f"/search?q={n}&lang={lang}" for n in range(2_000) for lang in ("de", "en", "fr")],
        [f"/list?sort={sort}&page={n}" for sort in ("price", "name") for n in range(100)],
    ],
)
def test_honest_sites_come_through_whole(urls: list[str]) -> None:
    assert judged(urls) == {None: len(urls)}


@pytest.mark.parametrize(
    "path",
    ["/a/b/a/b/a/b", "/x/x/x", "/shop/en/de/shop/en/de/shop/en/de/", "//////x", "/a/b/c/a/c/b/a/c/b/c", "/x" * 60],
)
def test_paths_that_go_round_in_circles(path: str) -> None:
    assert repeats_itself(SITE + path)
    assert TrapGuard(TODAY).judge(SITE + path) == "repeating_path"


@pytest.mark.parametrize(
    "path", ["/", "/a", "/a/a", "/docs/api/docs/api", "/1/1/1", "/2024/20/20", "/a/b/c/d/e/f/g/h/i/j/k"]
)
def test_paths_that_do_not(path: str) -> None:
    assert not repeats_itself(SITE + path)


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3), st.integers(3, 8), st.text("xyz/", max_size=6)
)
def test_three_rounds_are_seen_wherever_they_begin(cycle: list[str], rounds: int, before: str) -> None:
    assert repeats_itself(f"{SITE}/{before}/{'/'.join(cycle * rounds)}")


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("/a;jsessionid=0A1B2C?x=1", "/a?x=1"),
        ("/a;JSESSIONID=0A1B2C.node1", "/a"),
        ("/a?PHPSESSID=abc", "/a"),
        ("/a?PHPSESSID=abc&x=1", "/a?x=1"),
        ("/a?x=1&phpsessid=abc&y=2", "/a?x=1&y=2"),
        ("/a?x=1&ASPSESSIONIDQQ=abc", "/a?x=1"),
        ("/(S(lit3py55t21z5v55vlm25s55))/page.aspx", "/page.aspx"),
        ("/a?CFID=1&CFTOKEN=2&id=3", "/a?id=3"),
        ("/a?sid=1", "/a?sid=1"),
        ("/sessions/jsessionid", "/sessions/jsessionid"),
        ("/a?assessment=5", "/a?assessment=5"),
    ],
)
def test_session_ids_are_taken_out(url: str, clean: str) -> None:
    assert without_session(SITE + url) == SITE + clean


@settings(max_examples=200)
@given(st.text("abc/?&;=PHPSESSID()jsessionid0123456789", max_size=40))
def test_taking_out_is_done_in_one_go_and_leaves_a_normal_url(rest: str) -> None:
    once = without_session(normalise(f"{SITE}/{rest}"))
    assert normalise(once) == once
    assert once.startswith(SITE + "/")


def test_what_may_be_a_session_id_is_followed_a_few_times() -> None:
    seen = judged([f"/page?s={n:032x}&id={page}" for page in range(10) for n in range(100)])
    assert seen == {None: 10 * traps.SESSION_VARIANTS, "session_id": 10 * (100 - traps.SESSION_VARIANTS)}
    assert judged([f"/?s=word{n}" for n in range(1_000)]) == {None: 1_000}


@pytest.mark.parametrize(
    "form",
    ["/calendar/{0:%Y}/{0:%m}/{0:%d}", "/events/{0:%Y-%m-%d}", "/cal?date={0:%Y-%m-%d}", "/{0:%Y}/{0:%m}/{0:%d}/",
     "/cal?year={0:%Y}&month={0:%m}&day={0:%d}", "/calendar/day/{0:%Y%m%d}",
     "/plan?from={0:%Y-%m-%d}T00:00&view=week"],
)  # fmt: skip
def test_calendars_end_in_both_directions(form: str) -> None:
    days = [TODAY + timedelta(days=n) for n in range(-12_000, 12_000)]
    seen = judged([form.format(day) for day in days])
    assert seen["calendar"] > 20_000
    assert seen["calendar"] + seen[None] == len(days)
    near = [form.format(TODAY + timedelta(days=n)) for n in range(-300, 300)]
    assert judged(near) == {None: len(near)}


def test_a_calendar_that_leads_to_articles_goes_on() -> None:
    guard = TrapGuard(TODAY)
    for n in range(8_000):
        url = f"{SITE}/archive/{TODAY - timedelta(days=n):%Y/%m/%d}/"
        assert guard.judge(url) is None
        guard.read(url, str(n), led_on=guard.leads_on(url, f"{SITE}/article/{n}"))


def test_filters_times_filters_end() -> None:
    urls = [
        f"/shoes?color={color}&size={size}&brand={brand}&sort={sort}"
        for color in range(10) for size in range(10) for brand in range(10) for sort in ("price", "name")
    ]  # fmt: skip
    seen = judged([*urls, "/hats?color=1", "/shoes"])
    assert seen == {None: traps.FACET_BUDGET + 2, "facets": len(urls) - traps.FACET_BUDGET}


def test_any_parameters_in_all_combinations_end() -> None:
    urls = ["/x?" + "&".join(f"p{bit}=1" for bit in range(12) if n >> bit & 1) for n in range(1, 4_096)]
    seen = judged(urls)
    assert seen["facets"] > 3_900
    assert seen[None] >= traps.PARAMETER_SETS


def test_pages_that_all_say_the_same_end_and_the_rest_goes_on() -> None:
    guard = TrapGuard(TODAY)
    followed = 0
    for n in range(5_000):
        url = f"{SITE}/echo/{n:x}-word"
        if guard.judge(url) is None:
            followed += 1
            guard.read(url, "the same", led_on=False)
            guard.read(f"{SITE}/real/{n}", f"text {n}", led_on=False)
    assert followed == traps.DUPLICATES_FROM
    assert guard.judge(f"{SITE}/echo/again") == "url_pattern"
    assert guard.judge(f"{SITE}/real/again") is None


def test_one_form_that_is_nearly_all_of_a_huge_site_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traps, "MAX_OF_SHAPE", 1_000)
    assert judged([f"/next/{n}" for n in range(3_000)]) == {None: 1_000, "url_pattern": 2_000}
    mixed = [url for n in range(3_000) for url in (f"/product/{n}", f"/review-of-{n:x}-by/{n}")]
    assert judged(mixed)[None] > 3_000


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traps, "_MAX_KEYS", 500)
    monkeypatch.setattr(traps, "_MAX_FOLDERS", 500)
    guard = TrapGuard(TODAY)
    for n in range(3_000):
        url = f"{SITE}/{n:b}x/{n}?sort={n}&s={n:032x}&p{n}=1"
        guard.judge(url)
        guard.read(url, str(n), led_on=True)
    assert len(guard._budgets) <= 501
    assert len(guard._shapes) <= 501
    assert len(guard._folders) <= 501


def test_forms() -> None:
    assert shape_of(f"{SITE}/p12/34/x?b=1&a=2&a=3") == f"{SITE}/p#/#/x?a&b"
    assert shape_of(f"{SITE}/{'0a' * 16}/{'1' * 8}-aaaa-bbbb-cccc-{'d' * 12}") == f"{SITE}/*/*"


@given(st.text("abc0123456789/?&=-._", max_size=60))
def test_any_url_can_be_judged(rest: str) -> None:
    url = normalise(f"{SITE}/{rest}")
    guard = TrapGuard(TODAY)
    guard.judge(url)
    guard.read(url, "x", led_on=True)
