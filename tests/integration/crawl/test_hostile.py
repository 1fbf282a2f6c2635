"""One crawl of a site that is all traps: each ends with its named reason, and the rest of the site is crawled."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import pytest

from resources.crawler.client import FetchLimits
from resources.crawler.plan import CrawlPlan
from resources.postgres.connection import dispose_engines
from resources.settings import PROJECT_ROOT
from tests.support.crawling import crawl, make_crawl, make_job, results
from tests.support.databases import administer, create_database
from tests.support.hostile import ORDINARY, HostileSite, Trap, flood, head, make_traps, redirect, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resources.crawler.plan import CrawlOutcome
    from resources.services import Endpoints
    from tests.support.databases import Database
    from tests.support.hostile import Write

pytestmark = pytest.mark.integration

TRAPS = make_traps()
Crawled = tuple[dict[str, Any], dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def crawled(cluster: Endpoints, migrated_template: str) -> Iterator[Crawled]:
    """What the crawl, in a process of its own, said at its end, and its results by path."""
    database = create_database(cluster, migrated_template)
    with HostileSite().running() as site:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.support.hostile_crawl", site.url, *astuple(database)],
            cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4_000:]
    yield json.loads(ended.stdout.splitlines()[-1]), results(database)
    dispose_engines()
    administer(cluster, f"DROP DATABASE {database.name} WITH (FORCE)")


def test_the_crawl_ends_by_itself_in_bounded_memory(crawled: Crawled) -> None:
    said, found = crawled
    assert said["finish_reason"] == "exhausted"
    # 100 MiB bombs, endless bodies and headers, 32 at once: what is held is bodies of 8 MiB and their trees.
    assert said["grown_mb"] < 400, said
    assert "/" in found


def test_the_rest_of_the_site_is_crawled(crawled: Crawled) -> None:
    _, found = crawled
    for number in range(ORDINARY):
        assert found[f"/ok/{number}"]["status"] == "success"


@pytest.mark.parametrize("path", TRAPS)
def test_a_trap_ends_with_its_reason(crawled: Crawled, path: str) -> None:
    row = crawled[1][path]
    trap = TRAPS[path]
    assert row["status"] == trap.status, row
    if trap.status == "skipped":
        assert row["skip_reason"] == trap.reason, row
    elif trap.status == "failed":
        named = row["error_message"].split(":")[0]
        # Where a connection is cut off inside of a body, what is noticed first is the network's business.
        assert named == trap.reason if trap.reason else named in ("protocol", "incomplete", "connection_reset"), row


def test_what_has_no_content_is_kept_without_text(crawled: Crawled) -> None:
    assert crawled[1]["/status/205-body"]["content_hash"] == crawled[1]["/empty"]["content_hash"]


# ------------------------------------------------------------------------------------------ robots.txt

RULES = b"User-agent: *\nDisallow: /ok/39\n" + b"".join(b"Disallow: /nothing/%d\n" % n for n in range(1_000))
ROBOTS_LIMITS = FetchLimits(page_seconds=1.0, connect_seconds=0.5, first_byte_seconds=0.5)


def crawl_with_robots(database: Database, robots: bytes | Write) -> tuple[CrawlOutcome, dict[str, dict[str, Any]]]:
    with HostileSite({}, robots).running() as site:
        plan = CrawlPlan(urls=(site.url,), allow_private=True)
        make_job(database, "job", plan)
        outcome = make_crawl(database, "job", plan, limits=ROBOTS_LIMITS).run()
    return outcome, results(database)


@pytest.mark.parametrize(
    ("robots", "reason"),
    [
        (flood(head(Content_Type="text/plain", Content_Length="100000"), b"D", 0.1, 1_000), "timeout"),
        (redirect("http://169.254.169.254/robots.txt"), "address refused"),
        (whole(b"User-agent: *\nAllow: /\n", "206 Partial Content"), "incomplete"),
        (whole(b"User-agent: *\n" + b"".join(b"Disallow: /*%d*b\n" % n for n in range(9_000))), "wildcards"),
    ],
    ids=["slow", "private", "a part", "wildcards"],
)
def test_a_site_whose_robots_txt_cannot_be_read_is_not_crawled(
    database: Database, robots: bytes | Write, reason: str
) -> None:
    outcome, found = crawl_with_robots(database, robots)
    assert reason in str(outcome.detail), outcome
    assert not any(row["status"] == "success" for row in found.values())


@pytest.mark.parametrize(
    ("robots", "forbidden"),
    [
        (redirect("/robots.txt"), 0),
        (flood(head(Content_Type="text/plain"), RULES), 1),
        (whole(RULES + b"# " + b"x" * 600_000 + b"\nDisallow: /"), 1),
    ],
    ids=["redirects to itself", "without end", "one endless line"],
)
def test_an_odd_robots_txt_does_not_keep_a_site_from_being_crawled(
    database: Database, robots: bytes | Write, forbidden: int
) -> None:
    outcome, found = crawl_with_robots(database, robots)
    assert outcome.finish_reason == "exhausted"
    read = [path for path, row in found.items() if row["status"] == "success" and path != "/"]
    assert len(read) == ORDINARY - forbidden
    assert ("/ok/39" in read) is not bool(forbidden)


# ------------------------------------------------------------------------------------------ mazes


@pytest.mark.parametrize("start", ["/maze/1", "/maze/?filter_a=1"], ids=["numbers", "filters"])
def test_a_maze_ends_and_the_honest_pages_are_crawled(database: Database, start: str) -> None:
    with HostileSite({start: Trap(b"")}).running() as site:
        outcome = crawl(database, site.url, max_pages=600)
    found = results(database)
    # What has filters upon filters is a trap by its form; what has numbers could be a catalogue, up to max_pages.
    assert outcome.finish_reason == ("exhausted" if "?" in start else "max_pages")
    read = {path for path, row in found.items() if row["status"] == "success"}
    assert len(read) <= 600
    # As far from the root as the maze's first pages, which are a level's fifty against one.
    assert {"/ok/0", "/ok/1"} <= read
    if "?" in start:
        assert {f"/ok/{number}" for number in range(ORDINARY)} <= read
