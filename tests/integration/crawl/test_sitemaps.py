"""What sitemaps bring to a crawl, in every form that sites give them."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pytest

from resources.postgres.discovery import read_discovery
from tests.support.crawling import crawl, results
from tests.support.site import Page

if TYPE_CHECKING:
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

XML = {"Content-Type": "application/xml"}


def urlset(site: Site, *paths: str) -> bytes:
    entries = "".join(f"<url><loc>{site.url.rstrip('/')}{path}</loc></url>" for path in paths)
    return f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</urlset>'.encode()


def index(site: Site, *paths: str) -> bytes:
    entries = "".join(f"<sitemap><loc>{site.url.rstrip('/')}{path}</loc></sitemap>" for path in paths)
    return f'<sitemapindex xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</sitemapindex>'.encode()


def sitemaps_of(database: Database, job_id: str = "job") -> dict[str, Any]:
    found = read_discovery(database.engine, job_id)["sitemaps"]
    assert isinstance(found, dict)
    return found


def test_pages_that_only_a_sitemap_names_are_crawled(site: Site, database: Database) -> None:
    site.add("/", ["/linked"])
    for path in ("/linked", "/hidden", "/deeper"):
        site.add(path)
    site.add("/hidden", ["/deeper"])
    site.pages["/sitemap.xml"] = Page(urlset(site, "/", "/hidden"), headers=XML)
    outcome = crawl(database, site.url)
    assert outcome.finish_reason == "exhausted"
    assert {path for path, row in results(database).items() if row["status"] == "success"} == {
        "/", "/linked", "/hidden", "/deeper",
    }  # fmt: skip
    assert (sitemaps_of(database)["files"], site.requests["/sitemap.xml"]) == (1, 1)
    found = dict(
        database.engine.connect().exec_driver_sql("SELECT url, found_by FROM crawl_frontier").all()  # type: ignore[arg-type]
    )
    assert found[f"{site.url}hidden"] == "sitemap"


def test_a_job_of_type_sitemap_fetches_what_they_list_and_follows_no_link(site: Site, database: Database) -> None:
    for path in ("/", "/a", "/b", "/c"):
        site.add(path, ["/c"])
    site.pages["/robots.txt"] = Page(f"Sitemap: {site.url}maps/index.xml\n".encode(), headers={})
    site.pages["/maps/index.xml"] = Page(index(site, "/maps/one.xml.gz", "/maps/index.xml"), headers=XML)
    site.pages["/maps/one.xml.gz"] = Page(gzip.compress(urlset(site, "/a", "/b")), headers={})
    outcome = crawl(database, site.url, job_type="sitemap")
    assert outcome.finish_reason == "exhausted"
    assert set(results(database)) == {"/a", "/b"}
    assert site.requests["/maps/index.xml"] == 1


def test_a_job_of_type_sitemap_without_any_says_so(site: Site, database: Database) -> None:
    site.add("/", ["/a"])
    outcome = crawl(database, site.url, job_type="sitemap")
    assert outcome.progress.total == 0
    assert outcome.detail is not None
    assert "sitemap" in outcome.detail


@pytest.mark.parametrize(
    "broken",
    [
        b"<html><body>Not found, with status 200</body></html>",
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><urlset><url><loc>&b;</loc></url></urlset>',
        b"<urlset><url><loc>http://[broken</loc></url",
        b"",
        gzip.compress(b"\0" * 70_000_000),
    ],
    ids=["html", "entities", "cut", "empty", "bomb"],
)
def test_a_broken_sitemap_is_noted_and_the_site_is_crawled(site: Site, database: Database, broken: bytes) -> None:
    site.chain(6)
    site.pages["/robots.txt"] = Page(f"Sitemap: {site.url}map.xml\n".encode(), headers={})
    site.pages["/map.xml"] = Page(broken, headers=XML)
    assert crawl(database, site.url).finish_reason == "exhausted"
    assert {row["status"] for row in results(database).values()} == {"success"}
    assert len(results(database)) >= 6
    assert any("map.xml" in problem for problem in sitemaps_of(database)["problems"])


def test_every_url_that_was_met_and_not_fetched_is_accounted_for(site: Site, database: Database) -> None:
    site.add("/", ["/a", "/private/x", "https://elsewhere.example/", "/picture.png", "/deep1"])
    site.add("/a")
    site.add("/deep1", ["/deep2"])
    site.add("/deep2")
    crawl(database, site.url, exclude=("/private/**",), max_depth=1)
    counts = read_discovery(database.engine, "job")["not_followed"]
    assert {name: counts.get(name) for name in ("excluded", "off_site", "binary", "max_depth")} == {
        "excluded": 1, "off_site": 1, "binary": 1, "max_depth": 1,
    }  # fmt: skip
