"""The site that ``make crawl`` visits when it is given none."""

from __future__ import annotations

import http.client
import re
import threading
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser
from xml.etree import ElementTree as ET

import pytest

from omniops_pipelines.demo import DemoSite, serve_demo_site
from omniops_pipelines.demo.site import PRICE_LIST, load_pages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SITEMAP = "{http://www.sitemaps.org/schemas/sitemap/0.9}"


@dataclass
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass
class Seen:
    """What an independent reading of a page finds in it."""

    title: str = ""
    lang: str = ""
    description: str = ""
    canonical: str = ""
    alternates: dict[str, str] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    main_text: str = ""


class _Reader(HTMLParser):
    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.seen = Seen()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "html":
            self.seen.lang = given["lang"]
        elif tag == "h1":
            self.seen.headings.append("")
        elif tag == "a":
            self.seen.links.append(given["href"])
        elif tag == "meta" and given.get("name") == "description":
            self.seen.description = given["content"]
        elif tag == "link" and given["rel"] == "canonical":
            self.seen.canonical = given["href"]
        elif tag == "link" and given["rel"] == "alternate":
            self.seen.alternates[given["hreflang"]] = given["href"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        opened = self.open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        if "title" in self.open:
            self.seen.title += data
        if "h1" in self.open:
            self.seen.headings[-1] += data
        if "main" in self.open:
            self.seen.main_text += data + " "


def read(page: bytes) -> Seen:
    reader = _Reader()
    reader.feed(page.decode("utf-8"))
    reader.close()
    assert reader.open == [], f"left open: {reader.open}"
    return reader.seen


def fetch(site: DemoSite, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Response:
    with closing(http.client.HTTPConnection(urlsplit(site.url).netloc, timeout=10)) as connection:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return Response(response.status, response.headers, response.read())


def internal_paths(site: DemoSite, at: str, seen: Seen) -> set[str]:
    urls = {urlsplit(urljoin(site.url.rstrip("/") + at, href)) for href in seen.links}
    return {url.path for url in urls if url.netloc == urlsplit(site.url).netloc}


def threads_of(port: int) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"demo-site-{port}")]


@pytest.fixture(scope="module")
def site() -> Iterator[DemoSite]:
    with serve_demo_site() as served:
        yield served


@pytest.fixture(scope="module")
def walked(site: DemoSite) -> dict[str, Seen]:
    """Every page that links lead to from the start page, found without asking the site for its list."""
    found: dict[str, Seen] = {}
    waiting = deque(["/"])
    while waiting:
        path = waiting.popleft()
        if path in found:
            continue
        response = fetch(site, path)
        is_page = response.status == 200 and response.headers.get_content_type() == "text/html"
        if not is_page or path in site.disallowed:
            continue
        found[path] = read(response.body)
        waiting.extend(internal_paths(site, path, found[path]))
    return found


def test_the_site_has_the_size_of_a_small_company(site: DemoSite) -> None:
    assert 30 <= len(site.pages) <= 60


def test_every_page_is_reached_by_links_from_the_start_page(site: DemoSite, walked: dict[str, Seen]) -> None:
    assert set(walked) == site.pages


def test_every_link_leads_to_something_that_the_site_declares(site: DemoSite, walked: dict[str, Seen]) -> None:
    linked = set().union(*(internal_paths(site, path, seen) for path, seen in walked.items()))
    assert linked == site.pages | set(site.redirects) | site.missing | site.documents | site.disallowed


def test_no_page_links_to_another_host(site: DemoSite, walked: dict[str, Seen]) -> None:
    hosts = {urlsplit(urljoin(site.url, href)).netloc for seen in walked.values() for href in seen.links}
    assert hosts == {urlsplit(site.url).netloc}


def test_titles_descriptions_and_headings_are_unique(walked: dict[str, Seen]) -> None:
    for values in (
        [seen.title for seen in walked.values()],
        [seen.description for seen in walked.values()],
        [seen.headings[0] for seen in walked.values()],
    ):
        assert all(values)
        assert len(set(values)) == len(values)


def test_each_page_is_complete_and_names_its_own_address(site: DemoSite, walked: dict[str, Seen]) -> None:
    for path, seen in walked.items():
        assert seen.canonical == site.url.rstrip("/") + path
        assert len(seen.headings) == 1
        assert 50 <= len(seen.description) <= 160, (path, len(seen.description))
        assert 150 <= len(seen.main_text.split()) <= 620, (path, len(seen.main_text.split()))


def test_translations_name_each_other(site: DemoSite, walked: dict[str, Seen]) -> None:
    translated = {path: seen for path, seen in walked.items() if seen.alternates}
    assert {seen.lang for seen in translated.values()} == {"de", "en"}
    for path, seen in translated.items():
        assert seen.alternates[seen.lang] == site.url.rstrip("/") + path
        for lang, url in seen.alternates.items():
            other = walked[urlsplit(url).path]
            assert other.lang == lang
            assert other.alternates == seen.alternates


def test_the_sitemap_lists_exactly_the_pages_with_their_dates(site: DemoSite) -> None:
    response = fetch(site, "/sitemap.xml")
    assert response.headers.get_content_type() == "application/xml"
    entries = {
        entry.findtext(f"{SITEMAP}loc"): entry.findtext(f"{SITEMAP}lastmod") for entry in ET.fromstring(response.body)
    }
    assert set(entries) == {site.url.rstrip("/") + path for path in site.pages}
    for path in site.pages:
        modified = parsedate_to_datetime(str(fetch(site, path, method="HEAD").headers["Last-Modified"]))
        assert entries[site.url.rstrip("/") + path] == modified.date().isoformat()


def test_robots_txt_allows_the_pages_and_points_to_the_sitemap(site: DemoSite) -> None:
    rules = RobotFileParser()
    rules.parse(fetch(site, "/robots.txt").body.decode().splitlines())
    assert rules.site_maps() == [f"{site.url}sitemap.xml"]
    assert all(rules.can_fetch("OmniOps", path) for path in site.pages)
    assert site.disallowed
    assert not any(rules.can_fetch("OmniOps", path) for path in site.disallowed)


def test_an_old_address_moves_permanently_to_a_page(site: DemoSite) -> None:
    assert len(site.redirects) == 1
    for old, new in site.redirects.items():
        response = fetch(site, old)
        assert (response.status, response.headers["Location"]) == (301, new)
        assert new in site.pages


@pytest.mark.parametrize("path", ["/guides/hub-gears", "/nothing/here", "/shop", "/../site.toml", "/%00"])
def test_what_does_not_exist_is_a_404_with_a_page_that_helps(site: DemoSite, path: str) -> None:
    response = fetch(site, path, headers={"If-None-Match": "*"})
    assert response.status == 404
    seen = read(response.body)
    assert seen.title.startswith("Page not found")
    assert "/help/" in seen.links


def test_the_price_list_is_a_pdf_whose_offsets_are_right_and_whose_prices_are_those_of_the_pages(
    site: DemoSite,
) -> None:
    response = fetch(site, PRICE_LIST)
    pdf = response.body
    assert response.headers.get_content_type() == "application/pdf"
    assert pdf.startswith(b"%PDF-1.4\n")
    assert pdf.endswith(b"%%EOF\n")
    table = int(pdf.split(b"startxref\n")[1].split()[0])
    assert pdf[table:].startswith(b"xref\n")
    offsets = [int(match[1]) for match in re.finditer(rb"(\d{10}) 00000 n ", pdf)]
    for number, offset in enumerate(offsets, start=1):
        assert pdf[offset:].startswith(b"%d 0 obj\n" % number)
    length = re.search(rb"/Length (\d+) >>\nstream\n(.*?)\nendstream", pdf, re.DOTALL)
    assert length is not None
    assert int(length[1]) == len(length[2])

    products = [page for page in load_pages().values() if page.sku]
    assert len(products) == 11
    for product in products:
        assert f"({product.sku})".encode() in pdf
        assert f"(EUR {product.price})".encode() in pdf
        assert f"€{product.price}" in product.body
        assert product.sku in product.body


@pytest.mark.parametrize("path", ["/", "/help/returns", "/robots.txt", "/sitemap.xml", PRICE_LIST])
def test_a_client_that_has_the_current_copy_gets_304_and_no_body(site: DemoSite, path: str) -> None:
    first = fetch(site, path)
    etag, modified = str(first.headers["ETag"]), str(first.headers["Last-Modified"])
    for condition in (
        {"If-None-Match": etag},
        {"If-None-Match": f'"other", W/{etag}'},
        {"If-None-Match": "*"},
        {"If-Modified-Since": modified},
        {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
    ):
        again = fetch(site, path, headers=condition)
        assert (again.status, again.body) == (304, b""), condition
        assert again.headers["ETag"] == etag


def test_a_client_with_an_older_copy_or_a_senseless_condition_gets_the_page(site: DemoSite) -> None:
    modified = str(fetch(site, "/about").headers["Last-Modified"])
    for condition in (
        {"If-None-Match": '"other"'},
        {"If-None-Match": '"other"', "If-Modified-Since": modified},
        {"If-Modified-Since": "Thu, 01 Jan 2015 00:00:00 GMT"},
        {"If-Modified-Since": "yesterday"},
        {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 -0000"},
    ):
        assert fetch(site, "/about", headers=condition).status == 200, condition


def test_the_query_of_a_url_changes_nothing(site: DemoSite) -> None:
    assert fetch(site, "/contact?utm_source=mail&x=%2F").body == fetch(site, "/contact").body


def test_head_answers_like_get_without_the_body(site: DemoSite) -> None:
    for path in ("/", "/repair-prices", "/guides/hub-gears"):
        head, got = fetch(site, path, method="HEAD"), fetch(site, path)
        assert (head.status, head.body) == (got.status, b"")
        assert head.headers["Content-Length"] == got.headers["Content-Length"] == str(len(got.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_are_refused_with_the_allowed_ones_named(site: DemoSite, method: str) -> None:
    response = fetch(site, "/", method=method)
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"


def test_one_connection_serves_many_requests(site: DemoSite) -> None:
    with closing(http.client.HTTPConnection(urlsplit(site.url).netloc, timeout=10)) as connection:
        connection.connect()
        socket = connection.sock
        for path in ("/", "/about", "/guides/hub-gears", "/repair-prices", "/team"):
            connection.request("GET", path)
            connection.getresponse().read()
            assert connection.sock is socket


def test_requests_are_counted_by_path_whatever_the_query_and_however_many_at_once() -> None:
    with serve_demo_site() as site:

        def visit() -> None:
            for number in range(10):
                fetch(site, f"/about?{number}")

        visitors = [threading.Thread(target=visit) for _ in range(8)]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join()
        fetch(site, "/nothing/here")
        assert site.requests == {"/about": 80, "/nothing/here": 1}


def test_a_site_that_stops_leaves_no_thread_and_frees_its_port_though_a_client_is_still_connected() -> None:
    with serve_demo_site() as site:
        port = int(urlsplit(site.url).port or 0)
        idle = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        idle.request("GET", "/")
        idle.getresponse().read()
        assert len(threads_of(port)) == 2
    assert threads_of(port) == []
    with closing(idle):
        assert idle.sock is not None
        assert idle.sock.recv(1) == b""
    with serve_demo_site(port=port) as again:
        assert fetch(again, "/").status == 200


def test_an_address_in_use_is_refused_with_a_hint(site: DemoSite) -> None:
    port = int(urlsplit(site.url).port or 0)
    with (
        pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}.*port at 0"),
        serve_demo_site(port=port),
    ):
        pass


def test_two_sites_at_once_have_their_own_addresses(site: DemoSite) -> None:
    with serve_demo_site() as other:
        assert other.url != site.url
        assert other.url in fetch(other, "/about").body.decode()
        assert site.url not in fetch(other, "/about").body.decode()
