"""Orders that stand in the database: a customer's configuration, and the job that another program queued.

Both are JSON that somebody else wrote, so types are checked here before values are (`crawl_order.check_order`).
A configuration may not allow private addresses at all; a job's row may, where the run's own configuration does too
(the database refuses that field to customers' own writes).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from resources.crawler.crawl_order import CrawlOrder, InvalidOrder, check_order
from resources.crawler.plan import CrawlPlan
from resources.crawler.urls import InvalidUrl, normalise, site_of

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a customer's configuration may say of a crawl.
CRAWL_SETTINGS: Final = (
    "max_pages", "max_bytes", "max_depth", "max_seconds", "concurrency", "requests_per_minute", "keep_html_days",
    "urls", "include", "exclude", "respect_robots", "render", "embed",
)  # fmt: skip

# What a job's row may say: all that can be ordered, but what the row itself says; and, of a plan that was kept with a
# job, what nobody orders.
ORDER_TYPES: Final = {
    name: kind for name, kind in get_type_hints(CrawlOrder).items() if name not in ("customer", "job_id")
}
_PLAN_TYPES: Final = {name: kind for name, kind in get_type_hints(CrawlPlan).items() if name not in ORDER_TYPES}

_NOT_OF_A_HOST: Final = frozenset("/\\?#@ ")

# A list longer than this is no configuration: a site's pages are found by crawling it.
_MAX_LIST: Final = 1_000


def check_domain(domain: str) -> str:
    """The domain of a configuration as jobs and urls spell it.

    Raises:
        InvalidOrder: it is no host (with or without a port).
    """
    if not _NOT_OF_A_HOST.isdisjoint(domain):
        msg = f"domain {domain[:80]!r} cannot be crawled: it must be a host alone, for example shop.example.com"
        raise InvalidOrder(msg)
    try:
        return site_of(normalise(f"https://{domain}/"))
    except InvalidUrl as error:
        msg = f"domain {domain[:80]!r} cannot be crawled: {error}"
        raise InvalidOrder(msg) from error


def plan_for_site(customer: str, domain: str, settings: Mapping[str, Any], job_type: str = "full_crawl") -> CrawlPlan:
    """What a customer's configuration asks for, checked.

    Args:
        customer: slug.
        domain: of the configuration: a host, with its port where that is not the scheme's own.
        settings: the whole of `customer_configs.settings`; only its `crawl` is read.
        job_type: how the job is to go about the site.

    Raises:
        InvalidOrder: the first thing that is wrong.
    """
    site = check_domain(domain)
    values = settings.get("crawl", {})
    if not isinstance(values, dict):
        msg = f"settings.crawl is {values!r:.80}, but it must be an object of {', '.join(CRAWL_SETTINGS)}"
        raise InvalidOrder(msg)
    unknown = sorted(set(values) - set(CRAWL_SETTINGS))
    if unknown:
        known = ", ".join(CRAWL_SETTINGS)
        msg = f"settings.crawl has {', '.join(unknown)[:200]}, which is unknown; it may have {known}"
        raise InvalidOrder(msg)
    given = {
        name: typed("settings.crawl." + name, value, ORDER_TYPES[name])
        for name, value in values.items()
        if value is not None
    }
    order = CrawlOrder(customer=customer, job_type=job_type, **given)
    plan = check_order(order if order.urls else replace(order, urls=(f"https://{site}/",)))
    for url in plan.urls:
        host = site_of(url)
        if host != site and not host.endswith("." + site):
            msg = f"settings.crawl.urls has {url}, which is not on {site}: name urls of the configuration's own site"
            raise InvalidOrder(msg)
    return plan


def queued_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the row of a queued job says: names that are known, values of the right type, lists as tuples.

    Raises:
        InvalidOrder: the first thing that is wrong.
    """
    known = {**ORDER_TYPES, **_PLAN_TYPES}
    unknown = sorted(set(config) - set(known))
    if unknown:
        named = ", ".join(repr(name[:40]) for name in unknown[:5])
        msg = f"config has unknown fields: {named}; known are {', '.join(sorted(ORDER_TYPES))}"
        raise InvalidOrder(msg)
    return {name: typed(f"config.{name}", value, known[name]) for name, value in config.items() if value is not None}


def plan_for_queued_job(order: CrawlOrder, job_type: str, config: Mapping[str, Any]) -> CrawlPlan:
    """What the row of a job that another program queued asks for, checked.

    Args:
        order: of the run that is to do it: what the row does not say, and whether private addresses are allowed.
        job_type: the row's own.
        config: the row's.

    Raises:
        InvalidOrder: the first thing that is wrong.
    """
    given = queued_config(config)
    if given.get("allow_private") and not order.allow_private:
        msg = "config.allow_private is on, which the run's own configuration has to allow too: set it there"
        raise InvalidOrder(msg)
    ordered = {name: given[name] for name in ORDER_TYPES if name in given and given[name] != ()}
    plan = check_order(replace(order, **{**ordered, "job_type": job_type, "allow_private": order.allow_private}))
    return replace(plan, **{name: given[name] for name in _PLAN_TYPES if name in given})


def typed(where: str, value: object, kind: object) -> Any:
    """The value, if it is of the type that a field of an order has; a list as a tuple.

    Args:
        where: name of the field, for the error.
        value: from JSON.
        kind: `bool`, `int`, `float`, `str` or a tuple of texts.

    Raises:
        InvalidOrder: it is not.
    """
    if kind is bool:
        fits = isinstance(value, bool)
        wanted = "true or false"
    elif kind in (int, float):
        # A run's configuration counts in whole numbers.
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
        if fits and not abs(value) < 2**53:  # type: ignore[arg-type]
            msg = f"{where} is out of all bounds"
            raise InvalidOrder(msg)
        value = int(value) if fits else value  # type: ignore[call-overload]
        wanted = "a whole number"
    elif kind is str:
        fits = isinstance(value, str)
        wanted = "a text"
    else:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value) and len(value) <= _MAX_LIST
        value = tuple(value) if fits else value  # type: ignore[arg-type]
        wanted = f"a list of texts (at most {_MAX_LIST:,})"
    if not fits:
        msg = f"{where} is {repr(value)[:60]}, but it must be {wanted}"
        raise InvalidOrder(msg)
    return value
