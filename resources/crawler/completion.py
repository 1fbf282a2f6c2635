"""What a crawl that has ended may conclude about pages that it did not find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from resources.crawler.urls import site_of

if TYPE_CHECKING:
    from resources.crawler.plan import CrawlPlan
    from resources.postgres.frontier import CrawlFrontier


def whole_sites(plan: CrawlPlan, finish_reason: str | None) -> list[str]:
    """The sites that a crawl went through from their root, with nothing left: what it did not find has no link.

    Whether `max_depth` cut something off is asked of the frontier.
    """
    if finish_reason != "exhausted" or plan.job_type not in ("full_crawl", "incremental"):
        return []
    if plan.include or plan.exclude:
        return []
    parts = [(url, urlsplit(url)) for url in plan.urls]
    return sorted({site_of(url) for url, part in parts if part.path == "/" and not part.query})


def settle(plan: CrawlPlan, frontier: CrawlFrontier, finish_reason: str | None) -> tuple[dict[str, Any], str | None]:
    """Decide, at a job's end, which pages are removed; again after a kill, with the same outcome.

    Returns:
        The counts of `CrawlFrontier.settle_pages`, and a sentence where there is something to say.
    """
    settled = frontier.settle_pages(whole_sites(plan, finish_reason)) or {}
    lost = {name: settled.get(name, 0) for name in ("gone", "moved", "noindex", "disallowed", "unlinked")}
    total = sum(lost.values())
    if not total:
        return settled, None
    said = ", ".join(f"{count} {name}" for name, count in lost.items() if count)
    if settled.get("held_back"):
        return settled, (
            f"{total} of {settled['alive']} pages would be removed ({said}): that is more than half, so they are "
            "kept until somebody has looked"
        )
    return settled, f"{total} of {settled['alive']} pages were removed ({said})"
