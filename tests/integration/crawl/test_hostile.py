"""One crawl of a site that is all traps: each ends with its named reason, and the rest of the site is crawled."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import pytest

from resources.postgres.connection import dispose_engines
from resources.settings import PROJECT_ROOT
from tests.support.crawling import results
from tests.support.databases import administer, create_database
from tests.support.hostile import ORDINARY, HostileSite, make_traps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resources.services import Endpoints

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
