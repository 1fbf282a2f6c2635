"""`omniops crawl --render`, as its users meet it: with a browser, and without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resources.crawler.rendering.chromium import missing_browser
from tests.acceptance.program import assert_exact, assert_nothing_written
from tests.support.script_site import add_application

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.program import Program
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize("mode", ["browser", "auto"])
def test_without_a_browser_it_says_what_to_do_and_writes_nothing(
    program: Program, database: Database, site: Site, tmp_path: Path, mode: str
) -> None:
    ended = program.run(
        "crawl", "--allow-private", "--render", mode, site.url, OMNIOPS_CHROMIUM=str(tmp_path / "none")
    ).expect(1)
    assert f"render={mode} needs a browser" in ended.err
    assert "OMNIOPS_CHROMIUM" in ended.err
    assert "render=http" in ended.err
    assert_nothing_written(database)
    assert sum(site.requests.values()) == 0


@pytest.mark.skipif(missing_browser() is not None, reason=f"no rendering here: {missing_browser()}")
def test_auto_crawls_a_site_that_scripts_make(program: Program, database: Database, site: Site) -> None:
    add_application(site, {"/": ["/a", "/plain"], "/a": ["/"]})
    site.add("/plain", ["/a"], body="Said by the server, in so many words. " * 20)
    arguments = ("crawl", "--json", "--allow-private", "--render", "auto", "--job-id", "rendered", site.url)
    summary = program.run(*arguments).expect(0).json
    assert summary["finish_reason"] == "exhausted"
    assert_exact(database, "rendered", [site.url, site.url + "a", site.url + "plain"])
    assert database.value("SELECT count(*) FROM website_content WHERE text LIKE '%told by a script%'") == 2
    assert database.value("SELECT config ->> 'render' FROM scrape_jobs") == "auto"


def test_another_mode_is_wrong_usage(program: Program, database: Database) -> None:
    program.run("crawl", "--render", "firefox", "https://shop.example/").expect(2)
    assert_nothing_written(database)
