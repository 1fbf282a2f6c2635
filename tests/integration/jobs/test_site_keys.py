"""A site's keys in the job `crawl`: they open the site, and stand nowhere afterwards."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import pytest
import redis
from aiohttp import web
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from resources.crawler.site_access import find_site
from resources.postgres.connection import driver_url
from resources.postgres.credentials import set_credentials
from resources.postgres.customers import ensure_customer
from resources.postgres.tenancy import service_connection
from resources.settings import Settings
from tests.integration.jobs.conftest import failures
from tests.support.crawling import results
from tests.support.site import Page, html, serve_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dagster as dg

    from tests.integration.jobs.conftest import RunJob
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

KEY, PASSWORD, COOKIE, PROXY_PASSWORD = "sesame-open-1", "swordfish-77", "c0ffee-c0ffee", "tunnel-pass-9"
ENCODED = "cmVhZGVyOnN3b3JkZmlzaC03Nw=="
SECRETS = (KEY, PASSWORD, COOKIE, PROXY_PASSWORD, ENCODED)
KEYS: dict[str, Any] = {
    "headers": {"X-Api-Key": KEY},
    "basic": {"username": "reader", "password": PASSWORD},
    "cookies": {"session": COOKIE},
}


@pytest.fixture
def other(site: Site) -> Iterator[Site]:
    """Another site, that would like to have the keys."""
    with serve_site() as served:
        yield served


def give_keys(database: Database, site: Site, **keys: Any) -> None:
    """As an administrator does it."""
    with service_connection(engine=database.engine) as connection:
        customer = ensure_customer(connection, "acme")
        connection.execute(
            text("INSERT INTO customer_configs (customer_id, domain, settings) VALUES (:c, :d, '{}')"),
            {"c": customer, "d": f"127.0.0.1:{site.port}"},
        )
        config = find_site(connection, customer, f"127.0.0.1:{site.port}")
        assert config is not None
        given = {"origin": site.url.rstrip("/"), **KEYS, **keys}
        set_credentials(connection, customer, config, given, settings=Settings.from_environment())


def everything(database: Database, instance: dg.DagsterInstance) -> dict[str, str]:
    """All that is kept anywhere: tables, Redis, Dagster's events and runs; by where it stands."""
    found: dict[str, str] = {}
    engine = create_engine(driver_url(database.admin_url), poolclass=NullPool)
    with engine.connect() as connection:
        tables = connection.execute(
            text(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
                "WHERE schemaname IN ('public', 'omniops_meta', 'dagster')"
            )
        ).scalars()
        for table in list(tables):
            rows = connection.execute(text(f"SELECT t::text FROM {table} AS t")).scalars()
            found[table] = "\n".join(rows)
    engine.dispose()
    client = redis.Redis.from_url(database.redis_url)
    for key in client.scan_iter(count=1_000):
        kind = client.type(key)
        raw = b""
        if kind == b"string":
            raw = client.get(key) or b""  # type: ignore[assignment]
        elif kind == b"hash":
            raw = b"\n".join(part for pair in client.hgetall(key).items() for part in pair)  # type: ignore[union-attr]
        elif kind == b"list":
            raw = b"\n".join(client.lrange(key, 0, -1))  # type: ignore[arg-type]
        unpacked = [raw]
        for piece in (raw, raw[1:], *raw.split(b"\n")):
            try:
                unpacked.append(zlib.decompress(piece))
            except zlib.error:
                continue
        found[f"redis {key!r}"] = b"\n".join(unpacked).decode("latin-1")
    for run in instance.get_runs():
        found[f"run {run.run_id}"] = repr(run) + str(run.run_config) + str(run.tags)
        found[f"events {run.run_id}"] = "\n".join(
            f"{event} {event.user_message}" for event in instance.all_logs(run.run_id)
        )
    return found


def assert_nowhere(found: dict[str, str]) -> None:
    assert len(found) > 30
    for where, what in found.items():
        for secret in SECRETS:
            assert secret not in what, f"{secret} stands in {where}"


def test_keys_open_the_site_and_stand_nowhere_afterwards(
    database: Database, site: Site, other: Site, run_job: RunJob, ephemeral: dg.DagsterInstance
) -> None:
    seen: dict[str, dict[str, str]] = {}

    async def repeat(request: web.Request) -> web.StreamResponse:
        """The most indiscreet server: it says all that it was told, in every place that there is."""
        sent = dict(request.headers)
        seen[request.path] = sent
        told = " ".join(sent.get(name, "") for name in ("X-Api-Key", "Authorization", "Cookie"))
        body = html(
            f"You said {told}",
            ["/echo", "/away", "/reason", "/broken", "/elsewhere", f"/?key={sent.get('X-Api-Key')}", "/" + told],
            head=f'<meta name="description" content="{told}"><link rel="canonical" href="/?{told}">',
            body=told + " swordfish-77",
        )
        if sent.get("X-Api-Key") != KEY:
            return web.Response(status=401, reason=f"No {told}", body=body, content_type="text/html")
        headers = {"ETag": f'"{told}"', "Last-Modified": told, "Content-Language": told, "X-Echo": told}
        if request.path == "/away":
            return web.Response(status=302, headers={"Location": f"/landing?{KEY}&{COOKIE}"})
        if request.path == "/elsewhere":
            return web.Response(status=302, headers={"Location": other.url + "landed"})
        if request.path == "/reason":
            return web.Response(status=500, reason=f"Oops {KEY}", headers=headers)
        if request.path == "/broken":
            return web.Response(body=b"x" * 50, headers={"Content-Encoding": KEY, "Content-Type": "text/html"})
        return web.Response(body=body, content_type="text/html", headers=headers)

    for path in ("/", "/echo", "/away", "/reason", "/broken", "/elsewhere"):
        site.pages[path] = repeat
    other.pages["/"] = other.pages["/robots.txt"] = other.pages["/landed"] = repeat
    give_keys(database, site)
    result = run_job(
        "crawl",
        plan_crawl={"urls": [site.url, other.url], "customer": "acme", "job_id": "k", "allow_private": True},
    )
    assert result.success, failures(result)
    rows = results(database, "k")
    assert rows["/echo"]["status"] == "success"
    assert rows["/away"]["error_message"].startswith("redirect_invalid")
    assert rows["/broken"]["error_message"].startswith("bad_encoding")
    assert seen["/echo"]["X-Api-Key"] == KEY
    # The other seed is asked without keys, and so is what the site redirects to.
    assert other.requests["/"] == 1
    assert all("X-Api-Key" not in seen[path] and "Cookie" not in seen[path] for path in ("/robots.txt", "/landed"))
    assert "********" in str(database.value("SELECT text FROM website_content LIMIT 1"))
    assert_nowhere(everything(database, ephemeral))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"headers": {"Host": KEY}}, "Host"),
        ({"origin": f"https://{KEY}.example"}, "origin"),
    ],
)
def test_a_crawl_that_fails_because_of_its_keys_says_why_and_shows_none(
    database: Database, site: Site, run_job: RunJob, ephemeral: dg.DagsterInstance, keys: dict[str, Any], says: str
) -> None:
    site.add("/")
    give_keys(database, site, **keys)
    result = run_job(
        "crawl", plan_crawl={"urls": [site.url], "customer": "acme", "job_id": "k", "allow_private": True}
    )
    assert not result.success
    assert any(says in said for said in failures(result).values()), failures(result)
    assert not site.requests
    assert_nowhere({**everything(database, ephemeral), **dict.fromkeys(map(str, range(30)), "")})


def test_a_proxy_that_may_not_be_used_is_not_gone_around(
    database: Database, site: Site, run_job: RunJob, ephemeral: dg.DagsterInstance
) -> None:
    site.add("/")
    give_keys(database, site, proxy={"url": "http://127.0.0.1:9", "username": "p", "password": PROXY_PASSWORD})
    result = run_job(
        "crawl", plan_crawl={"urls": [site.url], "customer": "acme", "job_id": "k", "allow_private": True}
    )
    assert not result.success
    assert any("OMNIOPS_PRIVATE_PROXIES" in said for said in failures(result).values()), failures(result)
    found = everything(database, ephemeral)
    # Nothing is known of the site, so no page has a result, and the job goes on once the proxy may be used.
    job = database.manager.get_job_from_postgres("k")
    assert job is not None
    assert (job["status"], results(database, "k")) == ("paused", {})
    assert "http://127.0.0.1:9 " in job["error_message"]
    assert not site.requests
    assert_nowhere(found)


def test_without_keys_the_site_stays_closed(database: Database, site: Site, run_job: RunJob) -> None:
    site.pages["/"] = Page(b"no", 401)
    result = run_job(
        "crawl", plan_crawl={"urls": [site.url], "customer": "acme", "job_id": "k", "allow_private": True}
    )
    assert result.success, failures(result)
    assert results(database, "k")["/"]["error_message"] == "HTTP 401"
