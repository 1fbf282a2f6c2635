"""What the workers of one run say, taken together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resources.postgres.job_status import QUOTAS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from resources.postgres.frontier import CrawlFrontier

# Which reason counts where workers ended for several: the first of these. A worker that found nothing to do is
# `exhausted`, whatever became of the site.
_PRECEDENCE: Final = (
    "error", "cancelled", "paused", "max_bytes", "max_seconds", "max_pages", "site_unreachable", "disallowed",
    "exhausted",
)  # fmt: skip
# Rows for urls that were found and not followed: as many as the crawl itself writes.
_MAX_UNFOLLOWED_ROWS: Final = 10_000


def merge(shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of all workers: sums of what they did, the longest time, the reason that counts.

    Raises:
        ValueError: there is none.
    """
    if not shards:
        msg = "no worker has said how its crawl ended"
        raise ValueError(msg)
    reports = sorted(shards, key=lambda shard: _rank(shard.get("finish_reason")))
    first = dict(reports[0])
    for name in ("bytes", "retries", "repairs", "unread"):
        if any(name in report for report in reports):
            first[name] = sum(report.get(name, 0) for report in reports)
    for name in ("phases", "rendering"):
        sums: dict[str, float] = {}
        for report in reports:
            for part, value in (report.get(name) or {}).items():
                sums[part] = round(sums.get(part, 0) + value, 3)
        first[name] = sums
    return {
        **first,
        "seconds": max(report.get("seconds", 0.0) for report in reports),
        "complete": all(report["complete"] for report in reports),
        "workers": len(reports),
    }


def _rank(reason: str | None) -> int:
    return _PRECEDENCE.index(reason) if reason in _PRECEDENCE else len(_PRECEDENCE)


def verdict(frontier: CrawlFrontier, reason: str, successful_pages: int) -> str | None:
    """Why the job has ended, by what the database says now that nobody is at it.

    Args:
        frontier: of the job.
        reason: what its workers say.
        successful_pages: of the job.

    Returns:
        The finish reason, or None: urls are left, and no quota says so.
    """
    if frontier.has_waiting_urls():
        return reason if reason in QUOTAS else None
    if reason in QUOTAS or (reason in ("site_unreachable", "disallowed") and successful_pages):
        frontier.record_unfollowed(_MAX_UNFOLLOWED_ROWS)
        return "exhausted"
    return reason
