"""Reading a page: honest ones, odd ones and hostile ones."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.crawler.page import MAX_LINKS, Page, clean_text, parse, robots_directives

URL = "https://example.com/docs/index.html"


def read(html: str | bytes, **options: object) -> Page:
    body = html.encode() if isinstance(html, str) else html
    return parse(body, URL, **options)  # type: ignore[arg-type]


def test_metadata_links_and_text_are_read() -> None:
    page = read(
        """<!doctype html><html lang="de-AT"><head><title> Ein
        Titel &amp; mehr </title><meta name="Description" content=" Worum  es geht ">
        <link rel="canonical" href="/Docs?utm_source=x"></head><body>
        <h1>Über&nbsp;uns</h1><p>Ein <b>fetter</b> Satz.<br>Noch einer: 1 &lt; 2</p>
        <a href="a.html">A</a> <a href="a.html#teil">A</a> <a href="//other.org/">O</a>
        <map><area href="/area"></map><iframe src="/frame"></iframe>
        <script>var x = "<p>nicht sichtbar</p>";</script><style>p{}</style><noscript>auch nicht</noscript>
        <template>nein</template><!-- <p>nein</p> --></body></html>"""
    )
    assert page.title == "Ein Titel & mehr"
    assert page.description == "Worum es geht"
    assert page.canonical_url == "https://example.com/Docs"
    assert page.lang == "de-AT"
    assert page.links == [
        "https://example.com/docs/a.html",
        "https://other.org/",
        "https://example.com/area",
        "https://example.com/frame",
    ]
    assert page.text == "Über uns\nEin fetter Satz.\nNoch einer: 1 < 2\nA A O"
    assert (page.malformed_links, page.cleaned, page.truncated) == (0, 0, False)
    assert len(page.content_hash) == 32


def test_a_base_element_is_honoured_and_a_bad_one_is_not() -> None:
    assert read("<base href='/other/'><a href=x>").links == ["https://example.com/other/x"]
    assert read("<base href='javascript:0'><a href=x>").links == ["https://example.com/docs/x"]
    assert read("<base target=_blank><a href=x>").links == ["https://example.com/docs/x"]


def test_malformed_links_are_counted_and_harm_no_other() -> None:
    page = read("<a href='http://['>1</a><a href='http://a:b:c/'>2</a><a href='/ok'>3</a><a href='mailto:x@y'>4</a>")
    assert page.links == ["https://example.com/ok"]
    assert page.malformed_links == 2


def test_next_alternate_and_refresh_are_followed_and_feeds_and_styles_are_not() -> None:
    page = read(
        """<link rel=next href=/2><link rel="alternate" hreflang=fr href=/fr><link rel=alternate
        type="application/rss+xml" href=/feed><link rel="alternate stylesheet" href=/x.css>
        <link rel=stylesheet href=/y.css><meta http-equiv="Refresh" content="5; URL='/neu'">"""
    )
    assert page.links == ["https://example.com/2", "https://example.com/fr", "https://example.com/neu"]


@pytest.mark.parametrize(
    ("content", "links"),
    [("0;url=/a", 1), ("0; /a", 1), ('3,url="/a"', 1), ("5", 0), ("", 0), ("0;url=", 0), ("x;url=/a", 0)],
)
def test_a_meta_refresh_is_read_in_its_usual_spellings(content: str, links: int) -> None:
    assert len(read(f"<meta http-equiv=refresh content='{content}'>").links) == links


def test_nofollow_links_are_left_out_only_when_asked() -> None:
    html = "<a rel='noopener NOFOLLOW' href=/a>a</a><a rel=nofollowing href=/b>b</a>"
    assert read(html).links == ["https://example.com/b"]
    assert len(read(html, respect_nofollow=False).links) == 2


def test_robots_meta_tags_are_read_for_everyone_and_for_us() -> None:
    page = read("<meta name=ROBOTS content='NoIndex, nofollow'><a href=/a>")
    assert (page.noindex, page.nofollow, page.links) == (True, True, [])
    assert read("<meta name=OmniOpsBot content=none>").noindex
    assert not read("<meta name=googlebot content=noindex>").noindex
    assert read("<p>x", robots_header="noindex").noindex
    assert len(read("<meta name=robots content=nofollow><a href=/a>", respect_nofollow=False).links) == 1


def test_a_robots_header_for_another_agent_is_not_for_us() -> None:
    assert robots_directives("noindex") == (True, False)
    assert robots_directives("otherbot: noindex, nofollow") == (False, False)
    assert robots_directives("otherbot: noindex, omniopsbot: nofollow") == (False, True)
    assert robots_directives("unavailable_after: 25 Jun 2010 15:00:00 PST, noindex") == (True, False)
    assert robots_directives("max-snippet:-1, all") == (False, False)


@pytest.mark.parametrize(
    ("body", "charset", "text"),
    [
        ("naïve".encode(), None, "naïve"),
        ("naïve".encode("cp1252"), None, "naïve"),
        ("naïve".encode("latin-1"), "iso-8859-1", "naïve"),
        ("“x”".encode("cp1252"), "latin1", "“x”"),
        ("Привет".encode("cp1251"), "windows-1251", "Привет"),
        ("日本".encode("shift_jis"), "Shift_JIS", "日本"),
        ("中文".encode("gb18030"), "gb2312", "中文"),
        (b"\xef\xbb\xbf" + "naïve".encode(), "latin1", "naïve"),
        (b"\xff\xfe" + "naïve".encode("utf-16-le"), None, "naïve"),
        (b"\xfe\xff" + "naïve".encode("utf-16-be"), "utf-8", "naïve"),
        (b"<meta charset=windows-1251>" + "Привет".encode("cp1251"), None, "Привет"),
        (
            b"<meta http-equiv=content-type content='text/html; charset=koi8-r'>" + "Привет".encode("koi8-r"),
            None,
            "Привет",
        ),
        ("naïve".encode(), "no-such-charset", "naïve"),
        ("naïve".encode(), "rot13", "naïve"),
        (b"a+ADw-b", "utf-7", "a+ADw-b"),
    ],
)
def test_the_charset_is_found_as_browsers_find_it(body: bytes, charset: str | None, text: str) -> None:
    assert parse(body, URL, "text/html", charset).text == text


def test_bytes_that_are_not_their_charset_are_replaced_and_counted() -> None:
    page = parse(b"<title>a\xffb</title>c\xfe", URL, "text/html", "utf-8")
    assert page.title == "a\ufffdb"
    assert page.text == "c\ufffd"
    assert page.cleaned == 2


def test_nul_and_half_surrogate_pairs_are_cleaned_and_counted() -> None:
    page = read(b"<title>a\0b</title><p>c\0\0d &#xD800; &#0;</p><a href='/x\0y'>")
    assert page.cleaned >= 3
    assert page.title == "ab"
    for value in (page.title, page.text, *page.links):
        value.encode()
        assert "\0" not in value
    assert clean_text("a\0b\ud800c") == ("ab\ufffdc", 2)
    assert clean_text("ab\0") == ("ab", 1)
    assert clean_text("über") == ("über", 0)


def test_plain_text_is_kept_as_text_without_links() -> None:
    page = read("<a href=/x>\n\n  two   words\n", content_type="text/plain")
    assert (page.text, page.links) == ("<a href=/x>\ntwo words", [])


def test_without_text_the_hash_is_over_the_bytes() -> None:
    one, two = read("<p>a</p>", with_text=False), read("<p> a</p>", with_text=False)
    assert one.text == two.text == ""
    assert one.content_hash != two.content_hash
    assert read("<p>a</p>").content_hash == read("<div> a\n</div>").content_hash


@pytest.mark.parametrize("body", [b"", b" ", b"\0", b"<", b"</", b"<!", b"<!--", b"<html", b"&#", b"\xff\xfe"])
def test_a_fragment_of_nothing_is_an_empty_page(body: bytes) -> None:
    page = read(body)
    assert page.links == []
    assert page.title is None


def test_no_more_links_are_kept_than_the_bound() -> None:
    page = read("".join(f"<a href=/{n}>x</a>" for n in range(MAX_LINKS + 5_000)))
    assert len(page.links) == MAX_LINKS


def test_a_long_honest_page_is_read_to_its_end() -> None:
    rows = "".join(f"<tr><td>{n}</td><td><a href='/row/{n}'>row {n}</a></td></tr>" for n in range(9_000))
    page = read(f"<title>T</title><script>{'if (a<b) {}' * 9_000}</script><table>{rows}</table>")
    assert page.title == "T"
    assert len(page.links) == 9_000
    assert page.text.endswith("8999 row 8999")
    assert "if (a" not in page.text
    assert not page.truncated


_SIZE = 4 * 2**20
HOSTILE = {
    "nested blocks": b"<div>" * (_SIZE // 5),
    "nested blocks with foreign end tags": b"<div></x>" * (_SIZE // 9),
    "nested blocks, closed": b"<div>" * 100_000 + b"</div>" * 100_000,
    "attributes": b"<x " + b" ".join(b"a%d" % n for n in range(400_000)) + b">",
    "quoted attributes": b"<x " + b" ".join(b"a%d='>'" % n for n in range(300_000)) + b">",
    "reopened formatting": b"".join(b"<b x=%d><p>" % n for n in range(100_000)),
    "reopened formatting in a small page": b"".join(b"<b x=%d><p>" % n for n in range(5_000)),
    "links": b"".join(b"<a href=/%d>y</a>" % n for n in range(200_000)),
    "lists": b"<ul><li>" * (_SIZE // 8),
    "tables": b"<table><tr><td>" * (_SIZE // 15),
    "comments that do not end": b"<!--" * (_SIZE // 4),
    "scripts that do not end": b"<script>" * (_SIZE // 8),
    "angle brackets": b"<" * _SIZE,
    "ampersands": b"&" * _SIZE,
    "quotes": b"<a '<a \"" * (_SIZE // 8),
    "comment in attributes": b"<p title='<!--'>" * (_SIZE // 16),
    "body attributes": b"".join(b"<body a%d=1>" % n for n in range(100_000)),
    "nul": b"\0" * _SIZE,
    "garbage": bytes(range(256)) * (_SIZE // 256),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_page_takes_bounded_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resources.crawler.page.PAGE_SECONDS", 0.3)
    started = time.process_time()
    page = read(HOSTILE[name])
    assert time.process_time() - started < 15
    assert len(page.links) <= MAX_LINKS


@settings(max_examples=400, deadline=None)
@given(
    st.binary(max_size=400) | st.text(alphabet="<>/ab='\"!-&;# \0script", max_size=200).map(str.encode),
    st.sampled_from([None, "utf-16", "gbk", "x"]),
)
def test_no_bytes_make_it_raise(body: bytes, charset: str | None) -> None:
    page = parse(body, URL, "text/html", charset)
    assert "\0" not in page.text
    page.text.encode()
