"""robots.txt by RFC 9309, from real servers on loopback."""

from __future__ import annotations

import asyncio

import pytest

from resources.crawler.client import FetchLimits, GuardedHttpClient
from resources.crawler.robots import MAX_ROBOTS_BYTES, RobotsPolicy, fetch_policy
from tests.integration.crawler.servers import Handler, answer, serving

LIMITS = FetchLimits(page_seconds=2, connect_seconds=1, first_byte_seconds=0.5)


def policy(robots: bytes | Handler, more: dict[str, bytes | Handler] | None = None) -> RobotsPolicy:
    async def work() -> RobotsPolicy:
        answers: dict[str, bytes | Handler] = {"/robots.txt": robots, **(more or {})}
        async with serving(answers) as server, GuardedHttpClient(allow_private=True, limits=LIMITS) as client:
            return (await fetch_policy(client, server.origin + "/some/page"))[0]

    return asyncio.run(asyncio.wait_for(work(), 30))


def text(content: str | bytes, **headers: str | None) -> bytes:
    body = content.encode() if isinstance(content, str) else content
    return answer(body, **{"Content_Type": "text/plain", **headers})


def test_the_group_of_our_own_name_is_the_one_that_counts() -> None:
    rules = policy(
        text("User-agent: *\nDisallow: /\n\nUser-agent: omniopsbot\nDisallow: /private\nCrawl-delay: 0.5\n")
    )
    assert rules.allowed("http://h/page")
    assert not rules.allowed("http://h/private/x")
    assert rules.crawl_delay == 0.5
    assert rules.reason is None


def test_the_longest_rule_wins_and_wildcards_hold() -> None:
    rules = policy(text("User-agent: *\nDisallow: /a\nAllow: /a/b\nDisallow: /*.php$\nDisallow: /ü\n"))
    assert not rules.allowed("http://h/a/c")
    assert rules.allowed("http://h/a/b/c")
    assert not rules.allowed("http://h/x.php")
    assert rules.allowed("http://h/x.php?y")
    assert not rules.allowed("http://h/%C3%BC")
    assert rules.allowed("http://h/robots.txt")


def test_more_wildcards_than_can_be_looked_for_in_each_url_forbid_everything() -> None:
    rules = "User-agent: {}\n" + "".join(f"Disallow: /*part-{n:04}/\n" for n in range(1_500))
    kept = RobotsPolicy.parse((rules.format("*") + rules.format("other") * 20).encode(), "http://h/robots.txt")
    assert kept.reason is None
    assert kept.allowed("http://h/x")
    assert not kept.allowed("http://h/x/part-0007/y")
    more = rules.format("*") + "".join(f"Disallow: /*more-{n:04}/\n" for n in range(1_500))
    refused = RobotsPolicy.parse(more.encode(), "http://h/robots.txt")
    assert not refused.allowed("http://h/x")
    assert "wildcards" in str(refused.reason)


def test_a_line_that_is_cut_by_the_bound_is_no_rule() -> None:
    filling = "# " + "x" * 998 + "\n"
    head = "User-agent: *\nDisallow: /a\n"
    room = MAX_ROBOTS_BYTES - len(head) - len("Disallow: /")
    body = head + filling * (room // 1001 - 1)
    body += "#" * (MAX_ROBOTS_BYTES - len("\nDisallow: /") - len(body)) + "\nDisallow: /private\n"
    rules = policy(text(body))
    assert rules.allowed("http://h/x")
    assert not rules.allowed("http://h/a")


@pytest.mark.parametrize("status", ["400 Bad", "401 No", "403 No", "404 Not Found", "410 Gone", "429 Slow"])
def test_a_4xx_allows_everything(status: str) -> None:
    rules = policy(answer(b"Disallow: /", status))
    assert rules.allowed("http://h/x")
    assert rules.reason == f"robots.txt answered {status[:3]}"


@pytest.mark.parametrize("status", ["500 Oops", "503 Busy"])
def test_a_5xx_forbids_everything_and_says_so(status: str) -> None:
    rules = policy(answer(b"", status))
    assert not rules.allowed("http://h/x")
    assert rules.reason == f"robots.txt answered {status[:3]}"


def test_a_server_that_does_not_answer_forbids_everything_and_says_so() -> None:
    async def silent(_: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(20)

    rules = policy(silent)
    assert not rules.allowed("http://h/x")
    assert "timeout" in (rules.reason or "")

    async def unreachable() -> RobotsPolicy:
        async with GuardedHttpClient(allow_private=True, limits=LIMITS) as client:
            return (await fetch_policy(client, "http://127.0.0.1:1/"))[0]

    assert asyncio.run(unreachable()).disallows_all


def test_redirects_are_followed_and_a_refused_address_is_not() -> None:
    found = answer(b"", "301 Moved", Location="/other.txt")
    assert not policy(found, {"/other.txt": text("User-agent: *\nDisallow: /x")}).allowed("http://h/x")
    metadata = policy(answer(b"", "302 Found", Location="http://169.254.169.254/robots.txt"))
    assert not metadata.allowed("http://h/x")
    assert "address refused" in (metadata.reason or "")
    assert policy(answer(b"", "302 Found", Location="/robots.txt")).allowed("http://h/x")


@pytest.mark.parametrize(
    ("value", "delay"),
    [
        ("2", 2.0),
        ("0.25", 0.25),
        ("0", 0.0),
        ("1e9", 60.0),
        ("-3", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("", None),
    ],
)
def test_a_crawl_delay_is_a_fraction_of_seconds_and_nonsense_is_ignored(value: str, delay: float | None) -> None:
    assert policy(text(f"User-agent: *\nCrawl-delay: {value}\n")).crawl_delay == delay


def test_sitemaps_are_listed_once_each_and_resolved() -> None:
    rules = policy(
        text("Sitemap: https://other.example/s.xml\nsitemap: /map.xml\nSitemap: /map.xml\nSitemap: http://[\n")
    )
    assert rules.sitemaps[0] == "https://other.example/s.xml"
    assert rules.sitemaps[1].endswith("/map.xml")
    assert len(rules.sitemaps) == 2


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream", None])
def test_a_wrong_type_and_a_bom_are_tolerated(kind: str | None) -> None:
    rules = policy(text(b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /x\r\n", Content_Type=kind))
    assert not rules.allowed("http://h/x")


def test_a_huge_file_is_read_as_far_as_500_kib() -> None:
    filler = "# filler\n" * 100_000
    rules = policy(text("User-agent: *\nDisallow: /x\n" + filler + "Disallow: /y\n"))
    assert not rules.allowed("http://h/x")
    assert rules.allowed("http://h/y")


@pytest.mark.parametrize(
    "body", [b"", b"\0\xff\xfe" * 1_000, b"<html>" * 1_000, b"Disallow: /", b"User-agent: *\nDisallow:\n"]
)
def test_a_file_that_says_nothing_allows_everything(body: bytes) -> None:
    rules = policy(text(body))
    assert rules.allowed("http://h/x")
    assert rules.crawl_delay is None
    assert rules.sitemaps == ()


def test_a_hostile_file_takes_bounded_time() -> None:
    rules = policy(text("User-agent: *\n" + "".join(f"Disallow: /{'*a' * 20}{n}$\n" for n in range(8_000))))
    for _ in range(5):
        rules.allowed("http://h/" + "a" * 500)
