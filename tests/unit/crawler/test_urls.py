"""Urls: one spelling for each page."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import urljoin

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resources.crawler.urls import (
    MAX_URL_LENGTH,
    GlobError,
    Globs,
    InvalidUrl,
    Joiner,
    UnsupportedScheme,
    looks_binary,
    normalise,
    origin_of,
    same_site,
    site_of,
    url_hash,
)

PAGE = "https://example.com/docs/guide/index.html?v=2"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTP://Example.COM:80/A/b", "http://example.com/A/b"),
        ("https://example.com:443", "https://example.com/"),
        ("https://example.com:8443/", "https://example.com:8443/"),
        ("https://example.com:/", "https://example.com/"),
        ("http://example.com/a/../b/./c/..", "http://example.com/b/"),
        ("http://example.com/../../a", "http://example.com/a"),
        ("http://example.com/%2e%2E/a/%2e", "http://example.com/a/"),
        ("http://example.com/a//b/", "http://example.com/a//b/"),
        ("http://example.com/#top", "http://example.com/"),
        ("http://example.com/?", "http://example.com/"),
        ("http://example.com/?#x", "http://example.com/"),
        ("http://example.com/%7euser/%c3%bc%2f%41", "http://example.com/~user/%C3%BC%2FA"),
        ("http://example.com/100%", "http://example.com/100%25"),
        ("http://example.com/%zz%4", "http://example.com/%25zz%254"),
        ("http://example.com/ü ö?q=ä b", "http://example.com/%C3%BC%20%C3%B6?q=%C3%A4%20b"),
        ("http://example.com/a[b]|c", "http://example.com/a%5Bb%5D%7Cc"),
        ("http://example.com/\ud800\0x", "http://example.com/%EF%BF%BD%00x"),
        ("http://example.com/\U0001f600", "http://example.com/%F0%9F%98%80"),
        ("  http://exa\nmple.com/a\tb\r\n ", "http://example.com/ab"),
        ("http:\\\\example.com\\a?b\\c", "http://example.com/a?b%5Cc"),
        ("http://example.com/?b=1&a=2&utm_source=x", "http://example.com/?b=1&a=2"),
        ("http://example.com/?utm_source=x&gclid=1&fbclid=2", "http://example.com/"),
        ("http://example.com/?UTM_Medium=x&%75tm_a=1&id=7", "http://example.com/?id=7"),
        ("http://example.com/?gclidx=1&my_utm_a=2", "http://example.com/?gclidx=1&my_utm_a=2"),
        ("http://example.com/?a=1&a=2&&b", "http://example.com/?a=1&a=2&&b"),
        ("http://EXÄMPLE.com./", "http://xn--exmple-cua.com/"),
        ("http://faß.de/", "http://xn--fa-hia.de/"),
        ("http://i❤.ws/", "http://xn--i-7iq.ws/"),
        ("http://ex%61mple.com/", "http://example.com/"),
        ("http://my_shop.example.com/", "http://my_shop.example.com/"),
        ("http://2130706433/", "http://127.0.0.1/"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://0177.0.0.1/", "http://127.0.0.1/"),
        ("http://127.1./", "http://127.0.0.1/"),
        ("http://0/", "http://0.0.0.0/"),
        ("http://\uff11\uff12\uff17\u30020.0.1/", "http://127.0.0.1/"),
        ("http://[2001:DB8:0::1]:80/", "http://[2001:db8::1]/"),
        ("http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/"),
    ],
)
def test_a_url_has_one_spelling(url: str, expected: str) -> None:
    assert normalise(url) == expected
    assert normalise(expected) == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "does not start with"),
        ("example.com/a", "does not start with"),
        ("/a", "does not start with"),
        ("http://", "no host"),
        ("http:///a", "no host"),
        ("http:example.com", "no host"),
        ("http://user:secret@example.com/", "user names"),
        ("http://example.com:0/", "port"),
        ("http://example.com:65536/", "port"),
        ("http://example.com:8a/", "port"),
        ("http://a..b/", "not a name"),
        ("http://-a.com/", "not a name"),
        ("http://a b.com/", "not a name"),
        ("http://" + "a" * 64 + ".com/", "not a name"),
        ("http://256.1.1.1/", "IPv4"),
        ("http://1.2.3.4.5/", "IPv4"),
        ("http://09.1.1.1/", "IPv4"),
        ("http://[::1/", "IPv6"),
        ("http://[fe80::1%25eth0]/", "IPv6|scope"),
        ("http://example.com/" + "a" * MAX_URL_LENGTH, "longer than 2,048"),
        ("http://example.com/" + "ü" * 3_000, "longer than 2,048"),
    ],
)
def test_a_url_that_cannot_be_crawled_says_why(url: str, reason: str) -> None:
    with pytest.raises(InvalidUrl, match=reason) as caught:
        normalise(url)
    assert caught.value.reason
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "url", ["mailto:a@b.c", "javascript:void(0)", "tel:+1", "data:text/html,x", "ftp://h/", "page:1"]
)
def test_another_scheme_is_no_mistake_of_the_page(url: str) -> None:
    with pytest.raises(UnsupportedScheme):
        normalise(url, PAGE)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("", PAGE),
        ("#top", PAGE),
        ("?a=1", "https://example.com/docs/guide/index.html?a=1"),
        ("?", "https://example.com/docs/guide/index.html"),
        ("next.html", "https://example.com/docs/guide/next.html"),
        ("./next.html", "https://example.com/docs/guide/next.html"),
        ("../", "https://example.com/docs/"),
        ("../../../x", "https://example.com/x"),
        ("/x", "https://example.com/x"),
        ("//other.org/x", "https://other.org/x"),
        ("http://other.org", "http://other.org/"),
        ("a/b?c=d#e", "https://example.com/docs/guide/a/b?c=d"),
        (".hidden", "https://example.com/docs/guide/.hidden"),
        ("./a:b", "https://example.com/docs/guide/a:b"),
        ("/a:b", "https://example.com/a:b"),
        ("\\x", "https://example.com/x"),
    ],
)
def test_a_link_is_resolved_as_rfc_3986_says(link: str, expected: str) -> None:
    assert normalise(link, PAGE) == expected


# RFC 3986, 5.4.1 and 5.4.2, on an http base.
@pytest.mark.parametrize(
    ("link", "path"),
    [
        ("g", "/b/c/g"),
        ("./g", "/b/c/g"),
        ("g/", "/b/c/g/"),
        ("/g", "/g"),
        ("?y", "/b/c/d;p?y"),
        ("g?y", "/b/c/g?y"),
        ("#s", "/b/c/d;p?q"),
        ("g;x=1/../y", "/b/c/y"),
        (";x", "/b/c/;x"),
        ("g;x?y#s", "/b/c/g;x?y"),
        (".", "/b/c/"),
        ("..", "/b/"),
        ("../g", "/b/g"),
        ("../..", "/"),
        ("../../g", "/g"),
        ("../../../g", "/g"),
        ("/./g", "/g"),
        ("g.", "/b/c/g."),
        ("..g", "/b/c/..g"),
        ("./../g", "/b/g"),
        ("g/./h", "/b/c/g/h"),
        ("g?y/../x", "/b/c/g?y/../x"),
    ],
)
def test_the_examples_of_rfc_3986_hold(link: str, path: str) -> None:
    assert normalise(link, "http://a/b/c/d;p?q") == "http://a" + path


_TEXT = st.text(max_size=40)
_LINKS = st.one_of(
    _TEXT,
    st.text(alphabet="abAB.-/?#&=%:@[]\\ ü0123", max_size=40),
    st.builds("http://{}/{}?{}".format, _TEXT, _TEXT, _TEXT),
    st.builds("http://h.example/{}?{}#{}".format, _TEXT, _TEXT, _TEXT),
)


@settings(max_examples=600, deadline=None)
@given(_LINKS)
@example("HTTP://_¡")  # a host that begins like one of the fast path and goes on otherwise
def test_a_normal_url_is_its_own_normal_spelling(link: str) -> None:
    for base in (None, PAGE):
        try:
            normal = normalise(link, base)
        except InvalidUrl:
            continue
        assert normal.isascii()
        assert len(normal) <= MAX_URL_LENGTH
        assert normalise(normal) == normal
        assert normalise(normal, "http://elsewhere.example/a/b") == normal
        assert not set(normal) & set(' \t\r\n\0#\\"<>')


_SEGMENTS = st.lists(st.text(alphabet="abcXYZ019-_~", min_size=1, max_size=5) | st.just(".."), max_size=5)


@settings(max_examples=300, deadline=None)
@given(_SEGMENTS, st.booleans(), st.booleans(), st.text(alphabet="abc=&1", max_size=8))
def test_joining_agrees_with_the_standard_library(parts: list[str], absolute: bool, slash: bool, query: str) -> None:
    link = ("/" if absolute else "") + "/".join(parts) + ("/" if slash and parts else "")
    link += "?" + query if query else ""
    base = "https://example.com/one/two/three"
    expected = urljoin(base, link)
    if expected.partition("?")[0].endswith("/.."):
        return  # urllib keeps these
    assert normalise(link, base) == expected


def test_the_site_is_host_and_port_and_the_scheme_does_not_matter() -> None:
    assert site_of("https://example.com/a") == "example.com"
    assert site_of("http://example.com:8080/a?b") == "example.com:8080"
    assert site_of("http://[::1]:8080/") == "[::1]:8080"
    assert site_of("example.com:81") == "example.com:81"
    assert origin_of("http://example.com:8080/a?b=/c") == "http://example.com:8080"
    assert same_site("http://example.com/a", "https://example.com/b")
    assert not same_site("http://example.com:8080/a", "http://example.com/")
    assert not same_site("http://docs.example.com/", "http://example.com/")
    assert same_site("http://docs.example.com/", "http://example.com/", subdomains=True)
    assert not same_site("http://badexample.com/", "http://example.com/", subdomains=True)


def test_the_hash_of_a_url_fits_a_bigint_and_never_changes() -> None:
    assert url_hash("http://example.com/") == url_hash("http://example.com/")
    assert url_hash("http://example.com/a") != url_hash("http://example.com/A")
    # Pinned: it is the key of rows that outlive this version.
    assert url_hash("http://example.com/") == -350646258024731386
    assert all(-(2**63) <= url_hash(f"http://h/{n}") < 2**63 for n in range(100))


@pytest.mark.parametrize(
    ("path", "binary"),
    [
        ("a.zip", True),
        ("a.JPG", True),
        ("a.png?x=1", True),
        ("a.pdf", False),
        ("a.html", False),
        ("a", False),
        ("a.zip/", False),
        ("a?x=b.zip", False),
        ("v1.2", False),
        ("a.docx", True),
        ("a.torrent", True),
        ("a.sqlite3", True),
    ],
)
def test_plainly_binary_extensions_are_known(path: str, binary: bool) -> None:
    assert looks_binary("http://example.com/" + path) is binary


def test_a_host_that_ends_like_a_file_is_no_file() -> None:
    assert not looks_binary("http://example.app/")
    assert not looks_binary("http://movie.zip/")


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("/blog/*", ["/blog/a", "/blog/", "/blog/a?x=1"], ["/blog", "/blog/a/b", "/x/blog/a"]),
        ("/blog/**", ["/blog/a", "/blog/a/b?c=d/e"], ["/blog", "/blogs/a"]),
        ("/docs/**/*.html", ["/docs/a.html", "/docs/x/y/a.html", "/docs/a.html?x"], ["/docs/a.htm", "/a.html"]),
        ("/a?c", ["/abc"], ["/ac", "/a/c"]),
        ("/search?q=*", ["/search?q=x"], ["/search", "/search?p=x"]),
        ("**/private/**", ["/private/x", "/a/private/b/c"], ["/privates", "/private"]),
        ("https://example.com/x/**", ["/x/", "/x/y"], ["/y"]),
        ("HTTPS://EXAMPLE.com/x", ["/x"], ["/X"]),
        ("/ü *", ["/%C3%BC%20a"], ["/u a"]),
        ("**a*b**", ["/xaxxb", "/ab/c"], ["/b/a", "/a/b"]),
        ("/a.b+(c)", ["/a.b+(c)"], ["/aXb+(c)"]),
    ],
)
def test_a_glob_matches_what_a_person_expects(glob: str, matching: list[str], other: list[str]) -> None:
    globs = Globs([glob])
    assert [path for path in matching if not globs.wants("https://example.com" + path)] == []
    assert [path for path in other if globs.wants("https://example.com" + path)] == []


def test_exclusion_wins_over_inclusion_and_no_pattern_wants_everything() -> None:
    globs = Globs(include=["/a/**"], exclude=["/a/b/**", "**.php"])
    assert globs.wants("http://h/a/c")
    assert not globs.wants("http://h/a/b/c")
    assert not globs.wants("http://h/a/c.php")
    assert not globs.wants("http://h/b")
    assert Globs().wants("http://h/")
    assert not Globs()


@pytest.mark.parametrize("glob", ["", " /a", "blog", "blog/*", "/a/***", "/" + "a" * 1_000])
def test_a_bad_glob_is_refused_with_what_to_write(glob: str) -> None:
    with pytest.raises(GlobError, match="glob"):
        Globs(include=[glob])


@lru_cache(maxsize=100_000)
def _matches(glob: str, text: str) -> bool:
    """Match by definition, one character after another."""
    if not glob:
        return not text
    if glob.startswith("**"):
        return any(_matches(glob[2:], text[index:]) for index in range(len(text) + 1))
    if glob[0] == "*":
        return any(_matches(glob[1:], text[i:]) for i in range(len(text) + 1) if "/" not in text[:i])
    if not text:
        return False
    return (text[0] != "/" if glob[0] == "?" else text[0] == glob[0]) and _matches(glob[1:], text[1:])


@settings(max_examples=1_000, deadline=None)
@given(st.text(alphabet="ab*?/", max_size=8), st.text(alphabet="ab/", max_size=10))
def test_globs_without_backtracking_match_what_their_definition_says(glob: str, path: str) -> None:
    glob = "/" + glob
    if "***" in glob or "/**/" in glob:
        return
    assert Globs([glob]).wants("http://h/" + path) == _matches(glob, "/" + path)


def test_a_hostile_url_does_not_hang_a_glob() -> None:
    url = "http://h/" + "a" * 8_000
    for glob in ("**a*a*a*a*a*a*b", "/" + "*a" * 50 + "b", "/" + "**a" * 50 + "b", "**a*b**c*d**"):
        assert not Globs([glob]).wants(url)


def test_links_that_mean_the_page_are_not_remembered_for_its_folder() -> None:
    first, second = Joiner("http://example.com/a/one"), Joiner("http://example.com/a/two")
    for link in ("?x", " ?x", "#f", "", "\t?x"):
        assert first(link).startswith("http://example.com/a/one")
        assert second(link).startswith("http://example.com/a/two")
    assert first("three") == second("three") == "http://example.com/a/three"
    assert Joiner("http://example.com/b/one")("three") == "http://example.com/b/three"
