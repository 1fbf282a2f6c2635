"""The refresh: which websites are due, what is queued for them, and what is said of the others."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.crawler.crawl_order import InvalidOrder
from resources.crawler.plan import CrawlPlan
from resources.crawler.refresh import JOB_TYPE, InvalidRefresh, RefreshResult, job_id_for, refresh
from resources.crawler.stored_order import plan_for_site
from resources.redis import AsyncRateLimiter, AsyncRedisWithFallback, RedisWithFallback
from tests.integration.jobs.conftest import failures, metadata
from tests.integration.retention.seeds import execute, make_customer, make_job
from tests.support.crawling import make_crawl

if TYPE_CHECKING:
    from uuid import UUID

    from resources.services import Endpoints
    from tests.integration.jobs.conftest import RunJob
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

NOON = datetime(2026, 11, 24, 12, 20, tzinfo=UTC)


def configure(
    database: Database, customer: UUID, domain: str, settings: dict[str, Any] | None = None, *, enabled: bool = True
) -> None:
    execute(
        database,
        """INSERT INTO customer_configs (customer_id, domain, settings, enabled)
           VALUES (:customer, :domain, CAST(:settings AS jsonb), :enabled)""",
        customer=customer, domain=domain, settings=json.dumps(settings or {}), enabled=enabled,
    )  # fmt: skip


def queue(database: Database, now: datetime = NOON, **options: Any) -> RefreshResult:
    result = refresh(database.engine, database.manager, now=now, dry_run=options.pop("dry_run", False), **options)
    # As if the clock had stood at `now`.
    execute(
        database, "UPDATE scrape_jobs SET created_at = :now WHERE job_id = ANY (:made)", now=now, made=queued(result)
    )
    return result


def finish(database: Database) -> None:
    """End every job, so that none stands in the way of the next."""
    execute(database, "UPDATE scrape_jobs SET status = 'cancelled' WHERE status = 'queued'")


def queued(result: RefreshResult) -> list[str]:
    return [outcome.job_id or "" for outcome in result.sorted() if outcome.outcome == "queued"]


def outcomes(result: RefreshResult) -> dict[str, str]:
    return {outcome.domain: outcome.outcome for outcome in result.named}


def test_a_site_without_settings_is_crawled_from_its_front_page_once_a_day(database: Database) -> None:
    customer = make_customer(database, "acme")
    configure(database, customer, "shop.example")
    assert queued(queue(database)) == ["refresh-20261124-acme_shop.example"]
    job = database.manager.get_job_from_postgres("refresh-20261124-acme_shop.example")
    assert job is not None
    assert (job["status"], job["domain"], job["job_type"], job["customer"], job["run_id"]) == (
        "queued", "shop.example", JOB_TYPE, "acme", None,
    )  # fmt: skip
    assert job["config"] == CrawlPlan(urls=("https://shop.example/",), job_type=JOB_TYPE).as_config()
    finish(database)
    for hours in (0, 1, 12, 23):
        assert outcomes(queue(database, NOON + timedelta(hours=hours))) == {"shop.example": "recent"}
    # The tick of the next day may come a few seconds earlier in its minute.
    assert queued(queue(database, NOON + timedelta(hours=24, seconds=-20))) == ["refresh-20261125-acme_shop.example"]


def test_settings_become_the_jobs_plan(database: Database) -> None:
    customer = make_customer(database, "acme")
    crawl = {
        "max_pages": 50, "max_depth": 3, "max_seconds": 600, "concurrency": 4, "include": ["/docs/**"],
        "exclude": ["/docs/old/**"], "requests_per_minute": 30,
        "urls": ["https://WWW.shop.example/docs/?utm_source=x"], "respect_robots": False,
    }  # fmt: skip
    configure(database, customer, "shop.example", {"crawl": crawl, "retention": {"conversations": 30}})
    (job_id,) = queued(queue(database))
    plan = CrawlPlan(
        urls=("https://www.shop.example/docs/",), max_pages=50, max_depth=3, max_seconds=600, concurrency=4,
        include=("/docs/**",), exclude=("/docs/old/**",), respect_robots=False,
        requests_per_minute=30, job_type=JOB_TYPE,
    )  # fmt: skip
    assert database.value("SELECT config FROM scrape_jobs WHERE job_id = :j", j=job_id) == plan.as_config()


def test_a_site_that_is_due_for_many_customers_is_asked_politely_for_all_of_them(
    database: Database, site: Site, cluster: Endpoints
) -> None:
    site.chain(40)
    domain = f"127.0.0.1:{site.port}"
    for slug, limit in (("acme", 15), ("bolt", 500), ("cord", 0)):
        crawl = {"urls": [site.url], "max_seconds": 3, "requests_per_minute": limit}
        configure(database, make_customer(database, slug), domain, {"crawl": crawl})
    jobs = queued(queue(database))
    assert len(jobs) == 3
    assert queued(queue(database)) == []

    def work(job_id: str) -> None:
        config = database.value("SELECT config FROM scrape_jobs WHERE job_id = :j", j=job_id)
        client = AsyncRedisWithFallback(cluster.redis_url)
        plan = replace(CrawlPlan.from_config(config), allow_private=True)
        make_crawl(database, job_id, plan, limiter=AsyncRateLimiter(client)).run()
        client.fallback.close()

    for job_id in jobs:
        database.manager.update_job_status(job_id, "running")
    # The strictest comes first; the others hear of it before their first request.
    threads = [threading.Thread(target=work, args=(job_id,)) for job_id in sorted(jobs)]
    threads[0].start()
    while not site.moments:
        time.sleep(0.02)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert len(site.moments) == 15


def test_each_interval_has_one_job_over_days_of_hourly_ticks(database: Database) -> None:
    customer = make_customer(database, "acme")
    intervals = (1, 2, 6, 8, 24, 48)
    for every in intervals:
        configure(database, customer, f"every{every}.example", {"schedule": {"every_hours": every}})
    times: dict[int, list[int]] = {every: [] for every in intervals}
    hours = 4 * 24 + 1
    for hour in range(hours):
        # A tick is a few seconds late, and not always as late.
        result = queue(database, NOON + timedelta(hours=hour, seconds=60 - hour % 7))
        for every in intervals:
            if outcomes(result)[f"every{every}.example"] == "queued":
                times[every].append(hour)
        finish(database)
    assert times == {every: list(range(0, hours, every)) for every in intervals}


def test_a_site_whose_job_waits_or_runs_is_not_queued_again(database: Database) -> None:
    customer = make_customer(database, "acme")
    for status in ("queued", "running", "paused", "completed"):
        configure(database, customer, f"{status}.example", {"schedule": {"every_hours": 1}})
        make_job(database, customer, status, age_days=3, status=status)
        execute(database, "UPDATE scrape_jobs SET domain = :d WHERE job_id = :j", d=f"{status}.example", j=status)
    result = queue(database, datetime.now(UTC))
    assert outcomes(result) == {
        "queued.example": "unfinished", "running.example": "unfinished", "paused.example": "unfinished",
        "completed.example": "queued",
    }  # fmt: skip
    assert {o.job_id for o in result.named if o.outcome == "unfinished"} == {"queued", "running", "paused"}


def test_only_enabled_sites_that_want_it_are_queued(database: Database) -> None:
    customer = make_customer(database, "acme")
    configure(database, customer, "off.example", enabled=False)
    for domain, every in (("zero.example", 0), ("false.example", False), ("half.example", 1.5)):
        configure(database, customer, domain, {"schedule": {"every_hours": every}})
    result = queue(database)
    assert outcomes(result) == {"zero.example": "never", "false.example": "never", "half.example": "queued"}
    assert queued(result) == ["refresh-20261124.8-acme_half.example"]


BAD = [
    ({"schedule": {"every_hours": "daily"}}, "every_hours is 'daily'"),
    ({"schedule": {"every_hours": True}}, "every_hours is True"),
    ({"schedule": {"every_hours": None}}, "every_hours is None"),
    ({"schedule": {"every_hours": -1}}, "every_hours is -1"),
    ({"schedule": {"every_hours": 0.2}}, "every_hours is 0.2"),
    ({"schedule": {"every_hours": 10_000}}, "from 1 to 2,160"),
    ({"schedule": "daily"}, "settings.schedule is 'daily'"),
    ({"crawl": ["x"]}, "settings.crawl is ['x']"),
    ({"crawl": {"max_pages": "many"}}, "max_pages is 'many'"),
    ({"crawl": {"max_pages": True}}, "max_pages is True"),
    ({"crawl": {"max_pages": 2.5}}, "max_pages is 2.5"),
    ({"crawl": {"max_pages": 0}}, "max_pages is 0"),
    ({"crawl": {"concurrency": 100_000}}, "concurrency is 100000"),
    ({"crawl": {"max_page": 5}}, "max_page, which is unknown"),
    ({"crawl": {"allow_private": True}}, "allow_private, which is unknown"),
    ({"crawl": {"respect_robots": "no"}}, "respect_robots is 'no'"),
    ({"crawl": {"render": "firefox"}}, "render is 'firefox', but it must be one of http, browser, auto"),
    ({"crawl": {"include": "docs"}}, "include is 'docs'"),
    ({"crawl": {"include": ["docs"]}}, "docs"),
    ({"crawl": {"urls": ["ftp://shop.example/"]}}, "ftp"),
    ({"crawl": {"urls": ["https://other.example/"]}}, "not on shop.example"),
    ({"crawl": {"urls": ["https://evilshop.example/"]}}, "not on shop.example"),
]


@pytest.mark.parametrize(("settings", "words"), BAD)
def test_a_configuration_that_cannot_be_read_has_its_reason(settings: dict[str, Any], words: str) -> None:
    from resources.crawler.refresh import plan_site
    from resources.postgres.refresh import SiteDue

    schedule = settings.get("schedule", {})
    site = SiteDue(
        config_id=None, customer_id=None, customer="acme", domain="shop.example", state="due",  # type: ignore[arg-type]
        every_hours=None if schedule else 24.0, job_id=None, since=None, settings=settings,
    )  # fmt: skip
    with pytest.raises(InvalidOrder) as refused:
        plan_site(site, NOON)
    assert words in str(refused.value)


@pytest.mark.parametrize("domain", ["shop.example/x", "u@shop.example", "shop example", "", "a..b", "shop.example#x"])
def test_a_domain_that_is_no_host_is_refused(domain: str) -> None:
    with pytest.raises(InvalidOrder):
        plan_for_site("acme", domain, {})


def test_bad_configurations_are_all_reported_and_stop_nobody(database: Database, run_job: RunJob) -> None:
    customer = make_customer(database, "acme")
    for number, (settings, _) in enumerate(BAD):
        crawl = settings.get("crawl")
        if isinstance(crawl, dict) and "urls" in crawl:
            continue
        configure(database, customer, f"bad{number}.example", settings)
    configure(database, customer, "good.example")
    configure(database, customer, "no host.example")
    result = run_job("refresh", queue_due_websites={"dry_run": False})
    assert result.success
    shown = metadata(result, "queue_due_websites")
    rows = {row["domain"]: row for row in shown["websites"]}
    bad = [row for row in rows.values() if row["outcome"] == "invalid"]
    assert len(bad) == shown["invalid"] == len(BAD) - 3 + 1
    assert all(row["reason"] for row in bad)
    assert rows["good.example"]["outcome"] == "queued"
    assert shown["queued"] == 1
    assert [row["domain"] for row in database.rows("SELECT domain FROM scrape_jobs")] == ["good.example"]


def test_in_the_launchpad_it_only_looks(database: Database, run_job: RunJob) -> None:
    configure(database, make_customer(database, "acme"), "shop.example")
    shown = metadata(run_job("refresh"), "queue_due_websites")
    assert (shown["dry_run"], [row["outcome"] for row in shown["websites"]]) == (True, ["due"])
    assert database.value("SELECT count(*) FROM scrape_jobs") == 0


def test_a_bound_that_is_none_is_refused_before_anything_is_written(database: Database, run_job: RunJob) -> None:
    configure(database, make_customer(database, "acme"), "shop.example")
    for bound in (0, -5, 1_000_000):
        result = run_job("refresh", queue_due_websites={"dry_run": False, "max_jobs": bound})
        assert f"max_jobs is {bound}" in failures(result)["queue_due_websites"]
        with pytest.raises(InvalidRefresh):
            queue(database, max_jobs=bound)
    assert database.value("SELECT count(*) FROM scrape_jobs") == 0


def test_two_refreshes_at_once_queue_each_site_once(database: Database) -> None:
    from concurrent.futures import ThreadPoolExecutor

    execute(database, "INSERT INTO customers (name, slug) SELECT 'c', 'c' || n FROM generate_series(1, 40) AS n")
    execute(
        database,
        """INSERT INTO customer_configs (customer_id, domain)
           SELECT id, 's' || n || '.example' FROM customers, generate_series(1, 30) AS n""",
    )
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(
                lambda _: refresh(database.engine, database.manager, now=NOON, dry_run=False, max_jobs=10_000),
                range(4),
            )
        )
    assert sum(result.counts["queued"] for result in results) == 1200
    assert database.value("SELECT count(*) FROM scrape_jobs") == 1200


def test_what_a_refresh_may_not_queue_any_more_the_next_one_does(database: Database) -> None:
    customer = make_customer(database, "acme")
    for site in range(7):
        configure(database, customer, f"s{site}.example")
    first = queue(database, max_jobs=3)
    assert (first.counts["queued"], first.counts["postponed"]) == (3, 4)
    second = queue(database, NOON + timedelta(hours=1), max_jobs=3)
    third = queue(database, NOON + timedelta(hours=2), max_jobs=3)
    assert (second.counts["queued"], third.counts["queued"]) == (3, 1)
    assert database.value("SELECT count(DISTINCT domain) FROM scrape_jobs") == 7


def test_a_queued_job_is_in_the_cache_as_any_job_is_and_needs_none(database: Database) -> None:
    from resources.redis.keys import CRAWL_JOB

    configure(database, make_customer(database, "acme"), "shop.example")
    (job_id,) = queued(queue(database))
    redis = RedisWithFallback(database.redis_url)
    assert redis.get(CRAWL_JOB.key(job_id)) is not None
    assert redis.ttl(CRAWL_JOB.key(job_id)) in range(3_500, 3_601)
    cached = database.manager.get_job(job_id)
    assert cached is not None
    assert cached["status"] == "queued"


def test_what_is_named_is_bounded_and_what_is_counted_is_all(database: Database) -> None:
    customer = make_customer(database, "acme")
    execute(
        database,
        """INSERT INTO customer_configs (customer_id, domain, settings)
           SELECT :c, 's' || n || '.example', CAST(:s AS jsonb) FROM generate_series(1, 300) AS n""",
        c=customer, s=json.dumps({"schedule": {"every_hours": 0}}),
    )  # fmt: skip
    result = queue(database)
    assert (result.counts["never"], len(result.named)) == (300, 100)


_SLUGS = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
_SITES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,250}[a-z0-9](?::[1-9][0-9]{1,4})?", fullmatch=True)


@given(_SLUGS, _SITES, _SLUGS, _SITES, st.sampled_from([1.0, 1.5, 6.0, 24.0, 100.0]))
def test_no_two_sites_share_an_id_and_none_is_too_long(
    slug: str, site: str, other_slug: str, other_site: str, every: float
) -> None:
    one = job_id_for(slug, site, every, NOON)
    assert len(one.encode()) <= 200
    assert one == job_id_for(slug, site, every, NOON)
    assert (one == job_id_for(other_slug, other_site, every, NOON)) == ((slug, site) == (other_slug, other_site))


def test_slugs_and_domains_with_hyphens_are_not_mixed_up() -> None:
    assert job_id_for("a", "b-c.example", 24, NOON) != job_id_for("a-b", "c.example", 24, NOON)
