"""A site's keys: what can be sent, to whom, and that they never show themselves."""

from __future__ import annotations

import base64
import pickle
from dataclasses import replace
from typing import Any

import pytest

from resources.crawler.crawl_order import RefusedOrder, check_hosts, check_rendering
from resources.crawler.plan import CrawlPlan
from resources.crawler.site_access import (
    MAX_ENTRIES,
    MAX_VALUE,
    SessionCookies,
    SiteAccess,
    UnusableAccess,
    check_access,
)
from resources.secret import Secret

KEYS: dict[str, Any] = {
    "headers": {"X-Api-Key": "sesame-open-1"},
    "basic": {"username": "reader", "password": "pass word&<"},
    "cookies": {"session": "c0ffee-c0ffee"},
    "proxy": {"url": "http://proxy.example:3128", "username": "p", "password": "proxy-secret"},
}


def access(domain: str = "shop.example", **changed: Any) -> SiteAccess:
    return check_access(domain, {**KEYS, **changed})


def test_keys_are_sent_to_their_own_site() -> None:
    sent = access().headers_for("https://shop.example/a?b")
    assert sent == {
        "X-Api-Key": "sesame-open-1",
        "Authorization": "Basic " + base64.b64encode(b"reader:pass word&<").decode(),
        "Cookie": "session=c0ffee-c0ffee",
    }


@pytest.mark.parametrize(
    "url",
    [
        "http://shop.example/",
        "https://shop.example:8443/",
        "https://www.shop.example/",
        "https://shop.example.evil.example/",
        "https://evil.example/https://shop.example/",
        "https://example/",
        "http://shop.example:443/",
    ],
)
def test_keys_are_sent_nowhere_else(url: str) -> None:
    assert access().headers_for(url) == {}
    assert not access().is_for(url)


def test_keys_go_over_http_only_where_somebody_said_so() -> None:
    plain = access(origin="http://shop.example")
    assert plain.headers_for("http://shop.example/")
    assert plain.headers_for("https://shop.example/") == {}
    odd = check_access("localhost:8080", {**KEYS, "origin": "http://localhost:8080/"})
    assert odd.headers_for("http://localhost:8080/x")
    assert odd.headers_for("http://localhost/x") == {}


def test_values_may_be_secrets_and_nothing_shows_one() -> None:
    sealed = check_access("shop.example", {name: Secret(value) for name, value in KEYS.items()})
    assert sealed.headers_for("https://shop.example/")["X-Api-Key"] == "sesame-open-1"
    for shown in (
        repr(sealed),
        str(sealed),
        f"{sealed}",
        repr(sealed.headers),
        repr(sealed.proxy),
        str(sealed.described()),
    ):
        for value in ("sesame", "pass word", "c0ffee", "proxy-secret", "cmVhZGVy"):
            assert value not in shown
    assert sealed.described() == [
        "header X-Api-Key", "basic authentication", "cookie session", "proxy with credentials",
    ]  # fmt: skip
    with pytest.raises(TypeError):
        pickle.dumps(sealed)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"headers": {"X-A": "a\r\nHost: evil.example"}}, "X-A"),
        ({"headers": {"X-A": "a\0"}}, "X-A"),
        ({"headers": {"X-A": "ü"}}, "ASCII"),
        ({"headers": {"X-A": ""}}, "1 to"),
        ({"headers": {"X-A": "a" * (MAX_VALUE + 1)}}, "1 to"),
        ({"headers": {"X A": "secretsecret"}}, "name"),
        ({"headers": {"X-A:": "secretsecret"}}, "name"),
        ({"headers": {"Host": "secretsecret"}}, "Host"),
        ({"headers": {"content-length": "5"}}, "content-length"),
        ({"headers": {"Accept-Encoding": "gzip"}}, "Accept-Encoding"),
        ({"headers": {"Cookie": "secretsecret"}}, "Cookie"),
        ({"headers": {"X-A": "secretsecret", "x-a": "b"}}, "twice"),
        ({"headers": {f"X-{n}": "secretsecret" for n in range(MAX_ENTRIES + 1)}}, "at most"),
        ({"headers": {f"X-{n}": "s" * 2_000 for n in range(6)}}, "bytes together"),
        ({"headers": ["secretsecret"]}, "by name"),
        ({"headers": {"X-A": 5}}, "by name"),
        ({"basic": {"username": "a:b", "password": "secretsecret"}}, "colon"),
        ({"basic": {"username": "a", "password": "secret\nsecret"}}, "printable"),
        ({"basic": {"username": "a"}}, "password"),
        ({"basic": "secretsecret"}, "username"),
        ({"basic": {"username": "a", "password": "b"}, "headers": {"authorization": "secretsecret"}}, "same header"),
        ({"cookies": {"a": "secret;secret"}}, "cookie a"),
        ({"cookies": {"a=b": "secretsecret"}}, "name"),
        ({"proxy": {"url": "socks5://secretsecret:1080"}}, "proxy"),
        ({"proxy": {"url": "https://p.example:3128"}}, "proxy"),
        ({"proxy": {"url": "http://p.example"}}, "port"),
        ({"proxy": {"url": "http://u:secretsecret@p.example:1"}}, "beside"),
        ({"proxy": {"url": "http://p.example:99999"}}, "port"),
        ({"proxy": {"url": "http://p.example:1/path"}}, "port"),
        ({"proxy": "http://p.example:1"}, "proxy"),
        ({"origin": "https://evil.example"}, "origin"),
        ({"origin": "ftp://shop.example"}, "origin"),
        ({"origin": 5}, "origin"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name_and_without_its_value(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UnusableAccess, match=says) as caught:
        check_access("shop.example", keys)
    assert "secret" not in str(caught.value).replace("'s", "")
    assert "evil" not in str(caught.value)


def test_other_programs_credentials_are_left_alone() -> None:
    found = check_access("shop.example", {"shopify_token": Secret("x" * 20)})
    assert not found.has_keys
    assert found.described() == []


@pytest.mark.parametrize(
    "words",
    [
        "sesame-open-1",
        "pass word&<",
        "pass%20word%26%3C",
        "pass word&amp;&lt;",
        "cmVhZGVyOnBhc3Mgd29yZCY8",
        "proxy-secret",
    ],
)
def test_what_a_server_repeats_is_masked(words: str) -> None:
    keys = access()
    assert keys.mask(f"a {words} b") == "a ******** b"
    assert keys.mask_bytes(f"a {words} ü".encode()) == "a ******** ü".encode()
    assert keys.mask("nothing of that") == "nothing of that"


def test_a_url_that_repeats_a_key_is_told() -> None:
    assert access().repeated_in("https://shop.example/?t=sesame%2Dopen-1")
    assert not access().repeated_in("https://shop.example/?t=other")


# ------------------------------------------------------------------------------------------ cookies


def test_a_session_is_kept_and_falls_back_to_what_was_configured() -> None:
    jar, keys = SessionCookies(), access()
    jar.take(["session=new; Path=/; HttpOnly", "cart=5; Path=/shop", "bad cookie", "=x", 'q="quoted"', "a=b\r\nX: y"])
    assert keys.headers_for("https://shop.example/shop/1", jar)["Cookie"] == "session=new; cart=5; q=quoted"
    assert keys.headers_for("https://shop.example/shopping", jar)["Cookie"] == "session=new; q=quoted"
    jar.take(["session=gone; Max-Age=0", "cart=; path=/", "q=x; Expires=Thu, 01-Jan-1970 00:00:00 GMT"])
    assert keys.headers_for("https://shop.example/shop/1", jar)["Cookie"] == "session=c0ffee-c0ffee"
    assert keys.headers_for("http://shop.example/shop/1", jar) == {}


def test_no_site_makes_its_cookies_grow_without_bound() -> None:
    jar = SessionCookies()
    jar.take(f"c{n}={'x' * 200}; Domain=evil.example" for n in range(10_000))
    jar.take(["huge=" + "y" * 100_000])
    kept = jar.for_path("/")
    assert len(kept) <= 50
    assert sum(len(name) + len(value) for name, value in kept.items()) < 9_000


@pytest.mark.parametrize("mode", ["browser", "auto"])
@pytest.mark.parametrize("kinds", [("headers",), ("basic",), ("cookies",), ("proxy",)])
def test_a_site_with_keys_or_a_proxy_is_not_rendered_without_them(mode: str, kinds: tuple[str, ...]) -> None:
    kept = check_access("shop.example", {kind: KEYS[kind] for kind in kinds})
    plan = CrawlPlan(urls=("https://shop.example/",), render=mode)
    with pytest.raises(RefusedOrder, match=f"render={mode} .*shop.example.*render=http") as raised:
        check_hosts(plan, kept)
    assert kept.described()[0] in str(raised.value)
    for value in ("sesame-open-1", "pass word&<", "c0ffee-c0ffee", "proxy-secret"):
        assert value not in str(raised.value)
    check_rendering(replace(plan, render="http"), kept)
    check_rendering(plan, None)
    check_rendering(plan, check_access("shop.example", {}))
