"""Sitemaps in every form, broken ones, and those that are meant to do harm."""

from __future__ import annotations

import gzip
import tracemalloc
from datetime import UTC, datetime
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.crawler import sitemaps
from resources.crawler.sitemaps import SitemapReader, read_lastmod

BASE = "https://example.com/sitemap.xml"
HEAD = b'<?xml version="1.0" encoding="UTF-8"?>\n'


def read(body: bytes, size: int = 65_536, base: str = BASE) -> tuple[list[str], SitemapReader]:
    reader = SitemapReader(base)
    found = [entry for start in range(0, len(body), size) for entry in reader.feed(body[start : start + size])]
    found += reader.close()
    return [entry.url for entry in found], reader


def urlset(*urls: str) -> bytes:
    entries = "".join(f"<url><loc>{escape(url)}</loc></url>" for url in urls)
    return HEAD + f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</urlset>'.encode()


def test_a_sitemap_with_everything_that_the_standard_has() -> None:
    body = HEAD + (
        b'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9" xmlns:xhtml="http://www.w3.org/1999/xhtml"'
        b' xmlns:image="http://www.google.com/schemas/sitemap-image/1.1"><!-- all of it -->'
        b"<url><loc>\n https://example.com/a?x=1&amp;y=2#part </loc><lastmod>2024-05-01T10:00:00+02:00</lastmod>"
        b"<changefreq>daily</changefreq><priority>0.5</priority>"
        b"<image:image><image:loc>https://example.com/picture.png</image:loc></image:image>"
        b'<xhtml:link rel="alternate" hreflang="de" href="https://example.com/de/a"/></url>'
        b"<url><loc><![CDATA[https://example.com/b?x=1&y=2]]></loc></url></urlset>"
    )
    reader = SitemapReader(BASE)
    found = reader.feed(body) + reader.close()
    assert [(entry.url, entry.lastmod) for entry in found] == [
        ("https://example.com/a?x=1&y=2", datetime(2024, 5, 1, 8, tzinfo=UTC)),
        ("https://example.com/de/a", None),
        ("https://example.com/b?x=1&y=2", None),
    ]
    assert reader.problem is None
    assert reader.is_sitemap


def test_an_index_names_sitemaps() -> None:
    reader = SitemapReader(BASE)
    found = reader.feed(
        b"<sitemapindex><sitemap><loc>/s1.xml.gz</loc><lastmod>2024</lastmod></sitemap></sitemapindex>"
    )
    assert [(e.url, e.is_sitemap) for e in found] == [("https://example.com/s1.xml.gz", True)]
    assert found[0].lastmod == datetime(2024, 1, 1, tzinfo=UTC)


def test_text_rss_and_atom() -> None:
    text = b"\xef\xbb\xbfhttps://example.com/1\r\nhttps://example.com/2\n\nnot a url\nhttps://example.com/3"
    urls, reader = read(text, 7)
    assert urls == [f"https://example.com/{n}" for n in (1, 2, 3)]
    assert reader.invalid == 1
    rss = (
        b"<rss><channel><link>https://example.com/</link><item><title>T</title><link>https://example.com/post</link>"
        b"<pubDate>Tue, 05 Mar 2024 10:00:00 GMT</pubDate></item></channel></rss>"
    )
    assert read(rss)[0] == ["https://example.com/post"]
    atom = (
        b'<feed xmlns="http://www.w3.org/2005/Atom"><link rel="self" href="/feed"/><entry>'
        b'<link rel="edit" href="/no"/><link rel="alternate" href="/yes"/><updated>2024-01</updated></entry></feed>'
    )
    assert read(atom)[0] == ["https://example.com/yes"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1"])
def test_encodings(encoding: str) -> None:
    body = f'<?xml version="1.0" encoding="{encoding}"?><urlset><url><loc>https://example.com/ü</loc></url></urlset>'
    assert read(body.encode(encoding))[0] == ["https://example.com/%C3%BC"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufffe\uffff"), max_size=30), max_size=20),
    st.integers(1, 300),
    st.booleans(),
)
def test_where_the_pieces_are_cut_does_not_matter(paths: list[str], size: int, zipped: bool) -> None:
    printable = ["".join(c for c in path if c.isprintable()) for path in paths]
    body = urlset(*(f"https://example.com/{path}" for path in printable))
    body = gzip.compress(body) if zipped else body
    whole, _ = read(body, len(body))
    assert read(body, size)[0] == whole
    assert len(whole) == len(paths)


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=400)
    | st.binary(max_size=400).map(lambda b: b"<urlset><url><loc>" + b)
    | st.text().map(str.encode)
)
def test_no_bytes_make_it_raise(body: bytes) -> None:
    read(body, 50)
    read(gzip.compress(body)[:-3], 50)


def test_what_stands_before_the_break_counts() -> None:
    urls, reader = read(urlset("https://example.com/1", "https://example.com/2")[:-20] + b"<&>")
    assert urls == ["https://example.com/1"]
    assert "broken at line 2" in (reader.problem or "")
    urls, reader = read(b"<urlset><url><loc>/x</loc></url><url><loc>&nbsp;</loc></url></urlset>")
    assert urls == ["https://example.com/x"]
    assert "undefined entity" in (reader.problem or "")


def test_a_cut_gzip_gives_what_it_has() -> None:
    body = gzip.compress(urlset(*(f"https://example.com/{n}" for n in range(1_000))))
    urls, reader = read(body[: len(body) // 2])
    assert 100 < len(urls) < 1_000
    assert reader.problem


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"   \n ", "empty"),
        (b"<!doctype html><html><body>Not found", "no sitemap"),
        (b"<html><body>Not found</body></html>", "no sitemap: its root is <html>"),
        (b"not found", "no sitemap"),
        (b'{"error": 404}', "no sitemap"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "no sitemap"),
        (b"\x1f\x8bgarbage", "decompressed"),
    ],
)
def test_what_is_no_sitemap(body: bytes, says: str) -> None:
    urls, reader = read(body)
    assert urls == []
    assert says in (reader.problem or "")
    assert not reader.is_sitemap


def test_entities_are_refused_and_never_expanded() -> None:
    lol = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10))
    body = (
        b'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY l0 "lol">'
        + lol
        + b"]><urlset><url><loc>/&l9;</loc></url></urlset>"
    )
    urls, reader = read(body)
    assert urls == []
    assert "entity" in (reader.problem or "")
    outside = b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><urlset><url><loc>/&x;</loc></url></urlset>'
    assert read(outside)[0] == []
    parameter = (
        b'<!DOCTYPE r [<!ENTITY % p SYSTEM "http://127.0.0.1/d"> %p;]><urlset><url><loc>/a</loc></url></urlset>'
    )
    assert read(parameter)[0] == []
    # A document type alone does no harm.
    plain = b'<!DOCTYPE urlset SYSTEM "http://127.0.0.1:1/x.dtd"><urlset><url><loc>/a</loc></url></urlset>'
    assert read(plain)[0] == ["https://example.com/a"]


@pytest.mark.parametrize(
    ("piece", "count", "says"),
    [
        (b"<url>" * 1_000, 10_000, "nested"),
        (b"a" * 65_536, 900, "tag"),
        (b"<url><loc>" + b"u" * 65_536, 1, "broken"),
    ],
)
def test_size_is_bounded(piece: bytes, count: int, says: str) -> None:
    start = {"tag": b"<urlset><url ", "nested": b"<urlset>", "broken": b"<urlset>"}[says]
    reader = SitemapReader(BASE)
    tracemalloc.start()
    reader.feed(start)
    for _ in range(count):
        reader.feed(piece)
        if reader.problem:
            break
    reader.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert says in (reader.problem or "")
    assert peak < 30 * 2**20


def test_bombs_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    urls, reader = read(gzip.compress(b"<urlset>" + b" " * (60 * 2**20)))
    assert urls == []
    assert "longer than" in (reader.problem or "")
    assert reader.size <= 51 * 2**20
    inside = gzip.compress(gzip.compress(b"\0" * (10 * 2**20)))
    assert "no sitemap" in (read(inside)[1].problem or "")
    monkeypatch.setattr(sitemaps, "MAX_URLS", 10)
    urls, reader = read(urlset(*(f"https://example.com/{n}" for n in range(20))))
    assert len(urls) == 10
    assert "more than 10 urls" in (reader.problem or "")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024", (2024, 1, 1)),
        ("2024-05", (2024, 5, 1)),
        ("2024-05-06", (2024, 5, 6)),
        ("2024-5-6", (2024, 5, 6)),
        (" 2024-05-06T10:20Z ", (2024, 5, 6, 10, 20)),
        ("2024-05-06T10:20:30z", (2024, 5, 6, 10, 20, 30)),
        ("2024-05-06 10:20:30", (2024, 5, 6, 10, 20, 30)),
        ("2024-05-06T10:20:30.5+02:00", (2024, 5, 6, 8, 20, 30, 500_000)),
        ("2024-05-06T10:20:30,123456789-0330", (2024, 5, 6, 13, 50, 30, 123_456)),
        ("2024-05-06T10:20:30+02", (2024, 5, 6, 8, 20, 30)),
        ("2024-05-06 10:20:30 UTC", (2024, 5, 6, 10, 20, 30)),
        ("2016-12-31T23:59:60Z", (2016, 12, 31, 23, 59, 59)),
        ("Tue, 05 Mar 2024 10:00:00 GMT", (2024, 3, 5, 10)),
        ("Tue, 05 Mar 2024 10:00:00 +0100", (2024, 3, 5, 9)),
    ],
)
def test_dates(text: str, moment: tuple[int, ...]) -> None:
    assert read_lastmod(text) == datetime(*moment, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    "text",
    ["", None, "yesterday", "2024-13-01", "2024-02-30", "0000-00-00", "1715000000", "2024-05-06T25:00Z",
     "9999-12-31T23:59:59-14:00", "2024-05-06T10:00:00+99:00", "24-05-06", "2024-05-06" * 20,
     "\u0662\u0660\u0662\u0664-13"],
)  # fmt: skip
def test_nonsense_is_no_date(text: str | None) -> None:
    assert read_lastmod(text) is None


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)))  # noqa: DTZ001
def test_what_is_written_is_read(moment: datetime) -> None:
    assert read_lastmod(moment.replace(tzinfo=UTC).isoformat()) == moment.replace(tzinfo=UTC)


@given(st.text(max_size=60))
def test_no_text_makes_a_date_raise(text: str) -> None:
    read_lastmod(text)
