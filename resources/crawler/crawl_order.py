"""A crawl is ordered: what is asked for is checked before anything is written.

The command line and the job's first op use the same checks, so that a wrong value gives the same sentence in the
terminal and in the Dagster UI.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from resources.crawler.guard import HostCheckError, check_host
from resources.crawler.plan import (
    DEFAULT_CONCURRENCY,
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_DEPTH,
    DEFAULT_MAX_PAGES,
    DEFAULT_MAX_SECONDS,
    RENDER_MODES,
    CrawlPlan,
)
from resources.crawler.rendering.chromium import missing_browser
from resources.crawler.urls import GlobError, Globs, InvalidUrl, normalise, site_of
from resources.postgres.access import check_runtime_url
from resources.postgres.connection import DatabaseNotMigrated
from resources.postgres.customers import InvalidSlug, check_slug
from resources.postgres.job_status import JOB_TYPES, QUOTAS, UNFINISHED, may_reopen
from resources.postgres.migrate import migration_state
from resources.settings import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Engine

    from resources.crawler.site_access import SiteAccess
    from resources.postgres.jobs import PersistentJobManager

DEFAULT_CUSTOMER = "default"

_BOUNDS: dict[str, tuple[float, float, str]] = {
    "max_pages": (1, 100_000_000, "pages"),
    "max_bytes": (1, 2**50, "bytes"),
    "max_depth": (0, 10_000, "links"),
    "max_seconds": (1, 7 * 86_400, "seconds"),
    "concurrency": (1, 256, "requests at once"),
    "keep_html_days": (0, 365, "days (0 for not at all)"),
    "requests_per_minute": (0, 1_000_000, "requests a minute (0 for no limit)"),
    "shards": (1, 32, "workers"),
}


class InvalidOrder(ValueError):
    """What was asked for cannot be done as it stands; the message says what to change."""


class RefusedOrder(RuntimeError):
    """What was asked for is well formed, but cannot be done now: the host, the job or the database says no."""


@dataclass(frozen=True, slots=True)
class CrawlOrder:
    """What somebody asked for, as it was typed. Fields are those of the job's configuration."""

    urls: tuple[str, ...] = ()
    customer: str = DEFAULT_CUSTOMER
    job_id: str = ""
    job_type: str = "full_crawl"
    max_pages: int = DEFAULT_MAX_PAGES
    max_bytes: int = DEFAULT_MAX_BYTES
    max_depth: int = DEFAULT_MAX_DEPTH
    max_seconds: float = DEFAULT_MAX_SECONDS
    concurrency: int = DEFAULT_CONCURRENCY
    requests_per_minute: int = 0
    keep_html_days: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    respect_robots: bool = True
    allow_private: bool = False
    embed: bool = False
    shards: int = 1
    render: str = "http"


@dataclass(frozen=True, slots=True)
class PlannedCrawl:
    """A checked order.

    Attributes:
        job_id: made where none was given.
        customer: slug.
        domain: host (and port, where it is not the scheme's own) of the first url.
        plan: what the crawler does.
        status: of the job as it was found, or None for a new one.
        raised: quotas that are larger now than the job had them.
        reopened: the job was complete by a quota that has been raised.
    """

    job_id: str
    customer: str
    domain: str
    plan: CrawlPlan
    status: str | None
    raised: tuple[str, ...] = ()
    reopened: bool = False

    @property
    def finished(self) -> bool:
        """True if the job has ended already: there is nothing to fetch."""
        return self.status is not None and self.status not in UNFINISHED and not self.reopened


def make_job_id(domain: str) -> str:
    """A new job's id: sortable by time, recognisable by domain, unique by 32 random bits."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    host = "".join(c if c.isalnum() or c in ".-" else "-" for c in domain)[:60]
    return f"{stamp}-{host}-{secrets.token_hex(4)}"


def check_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """Normalise the start urls.

    Raises:
        InvalidOrder: there is none, or one is not an http(s) url.
    """
    if not urls:
        msg = "no url was given: name at least one, for example https://docs.example.com/"
        raise InvalidOrder(msg)
    normal = []
    for url in urls:
        try:
            normal.append(normalise(url.strip()))
        except InvalidUrl as error:
            raise InvalidOrder(str(error)) from error
    return tuple(dict.fromkeys(normal))


def check_order(order: CrawlOrder) -> CrawlPlan:
    """Check everything that can be checked without a store or the network.

    Raises:
        InvalidOrder: the first thing that is wrong, with what it was and what it may be.
    """
    urls = check_urls(order.urls)
    try:
        check_slug(order.customer)
    except InvalidSlug as error:
        raise InvalidOrder(str(error)) from error
    if order.job_id and (len(order.job_id.encode()) > 200 or not order.job_id.isprintable()):
        msg = f"job id {order.job_id[:40]!r} cannot be used: it may have 1 to 200 printable bytes"
        raise InvalidOrder(msg)
    if order.job_type not in JOB_TYPES:
        msg = f"job type {order.job_type!r} is unknown: it is one of {', '.join(JOB_TYPES)}"
        raise InvalidOrder(msg)
    for name in _BOUNDS:
        _check_bounds(order, name)
    if order.render not in RENDER_MODES:
        msg = f"render is {order.render!r}, but it must be one of {', '.join(RENDER_MODES)}"
        raise InvalidOrder(msg)
    try:
        Globs(order.include, order.exclude)
    except GlobError as error:
        raise InvalidOrder(str(error)) from error
    return CrawlPlan(
        urls=urls,
        job_type=order.job_type,
        max_pages=order.max_pages,
        max_bytes=order.max_bytes,
        max_depth=order.max_depth,
        max_seconds=order.max_seconds,
        concurrency=order.concurrency,
        requests_per_minute=order.requests_per_minute,
        keep_html_days=order.keep_html_days,
        include=tuple(order.include),
        exclude=tuple(order.exclude),
        respect_robots=order.respect_robots,
        allow_private=order.allow_private,
        render=order.render,
        embed=order.embed,
        shards=order.shards,
    )


def _check_bounds(order: CrawlOrder, name: str) -> None:
    low, high, unit = _BOUNDS[name]
    value = getattr(order, name)
    if not low <= value <= high:
        msg = f"{name} is {value}, but it must be between {low:,} and {high:,} {unit}"
        raise InvalidOrder(msg)


def check_database(database_url: str) -> None:
    """Refuse a database without this version's tables, or with a newer version's.

    Raises:
        DatabaseError: it cannot be reached.
        UnsafeRole: the url's role could get around row-level security.
        DatabaseNotMigrated: `omniops migrate` has to be run.
        RefusedOrder: the database is newer than the code.
    """
    check_runtime_url(database_url)
    state = migration_state(database_url)
    if not state.known:
        msg = f"the database stands at revision {state.current}, which this version does not know: update it"
        raise RefusedOrder(msg)
    if not state.up_to_date:
        msg = (
            f"the database is not migrated (it stands at {state.current or 'nothing'}, this version needs "
            f"{state.head}): run `omniops migrate`"
        )
        raise DatabaseNotMigrated(msg)


def check_browser(plan: CrawlPlan) -> None:
    """Refuse to render where there is no browser, on the machine that is to do it.

    Raises:
        RefusedOrder: what is missing, and how to get it.
    """
    if plan.render != "http" and (missing := missing_browser()) is not None:
        msg = f"render={plan.render} needs a browser, and {missing}"
        raise RefusedOrder(msg)


def check_embeddings(plan: CrawlPlan, engine: Engine) -> None:
    """Refuse to embed where no model can be used as things are set. No endpoint is asked.

    Raises:
        RefusedOrder: with what is wrong, and what to do.
        DBAPIError: the database refuses or cannot be reached.
    """
    if not plan.embed:
        return
    from resources.content.embed import usable_provider  # noqa: PLC0415 - only for whoever embeds
    from resources.content.embeddings import EmbeddingError  # noqa: PLC0415
    from resources.postgres.embeddings import ModelRefused  # noqa: PLC0415

    try:
        usable_provider(engine)
    except (EmbeddingError, ModelRefused, InvalidSetting) as error:
        msg = f"embed is on, but {error}"
        raise RefusedOrder(msg) from error


def check_rendering(plan: CrawlPlan, access: SiteAccess | None) -> None:
    """Refuse to render a site with keys or a proxy: what its scripts load would come without the one and the other.

    Raises:
        RefusedOrder: what there is, by name, and what to do.
    """
    if plan.render == "http" or access is None or not (access.has_keys or access.proxy):
        return
    msg = (
        f"render={plan.render} cannot be used for {access.origin}, which has {', '.join(access.described())}: "
        "the requests of its scripts would go without them. Use render=http, or remove them with "
        "`omniops sites credentials clear`"
    )
    raise RefusedOrder(msg)


def check_hosts(plan: CrawlPlan, access: SiteAccess | None = None) -> None:
    """Refuse start urls whose host has no address, is not to be fetched, or does not answer.

    Refuses what `check_rendering` does, first.

    Args:
        plan: whose urls.
        access: of the site. Through a proxy a host need not answer to us directly.

    Raises:
        RefusedOrder: with which host, and why.
    """
    check_rendering(plan, access)
    seen = set()
    for url in plan.urls:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.hostname or ""
        if (host, port) in seen:
            continue
        seen.add((host, port))
        try:
            check_host(host, port, plan.allow_private, connect=access is None or access.proxy is None)
        except HostCheckError as error:
            raise RefusedOrder(str(error)) from error


def plan_crawl(
    order: CrawlOrder, manager: PersistentJobManager, given: Collection[str] = frozenset()
) -> PlannedCrawl:
    """Check an order against the job that it names, if any. Reads only.

    An unfinished job is resumed with the plan that was kept with it; the order's urls may be left out then. Quotas
    may be raised: a job that a quota completed goes on then. Whether its pages are embedded may be said anew.

    Args:
        order: what is asked for.
        manager: the audit trail.
        given: fields that somebody named; the others are defaults, and say nothing of a job that there is.

    Raises:
        InvalidOrder: the order itself is wrong.
        RefusedOrder: the job belongs to another customer or was made for other urls.
    """
    job: dict[str, Any] | None = manager.get_job_from_postgres(order.job_id) if order.job_id else None
    if job is None:
        if order.job_id and not order.urls:
            msg = (
                f"there is no job {order.job_id!r} to resume: name a url to start one with this id "
                "(`omniops jobs list` shows those that there are)"
            )
            raise InvalidOrder(msg)
        plan = check_order(order)
        domain = site_of(plan.urls[0])
        return PlannedCrawl(order.job_id or make_job_id(domain), order.customer, domain, plan, None)
    if order.customer != job["customer"]:
        msg = (
            f"job {order.job_id} belongs to another customer than {order.customer!r}: "
            "name its own customer, or choose another job id"
        )
        raise RefusedOrder(msg)
    plan = CrawlPlan.from_config(job["config"]) if job["config"].get("urls") else check_order(order)
    if order.urls and check_urls(order.urls) != plan.urls:
        msg = (
            f"job {order.job_id} was made for {', '.join(plan.urls)}, not for {', '.join(order.urls)}: "
            "leave the url out to resume it, or choose another job id"
        )
        raise RefusedOrder(msg)
    raised = {
        name: getattr(order, name)
        for name in QUOTAS
        if name in given and may_reopen(name, plan.as_config(), {name: getattr(order, name)})
    }
    for name in ("shards", *raised):
        _check_bounds(order, name)
    plan = replace(plan, **raised)
    if "embed" in given:
        plan = replace(plan, embed=order.embed)
    reopened = job["status"] == "completed" and job["finish_reason"] in raised
    return PlannedCrawl(order.job_id, job["customer"], job["domain"], plan, job["status"], tuple(raised), reopened)
