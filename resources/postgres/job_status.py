"""The life of a scrape job: which status may follow which.

The database enforces the same (`scrape_job_may_move`, `scrape_job_may_reopen`), and tests compare the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

TRANSITIONS: Final[dict[str, frozenset[str]]] = {
    "queued": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"paused", "completed", "failed", "cancelled"}),
    "paused": frozenset({"running", "failed", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

STATUSES: Final = tuple(TRANSITIONS)
UNFINISHED: Final = frozenset(status for status, following in TRANSITIONS.items() if following)

# Limits of a job whose raising is the one way out of `completed`: each is a finish reason and a field of the config.
QUOTAS: Final = ("max_pages", "max_bytes", "max_seconds")

JOB_TYPES: Final = ("full_crawl", "incremental", "sitemap", "single_page")
RESULT_STATUSES: Final = ("success", "failed", "skipped")
FINISH_REASONS: Final = (
    "exhausted",
    "max_pages",
    "max_seconds",
    "max_bytes",
    "cancelled",
    "paused",
    "site_unreachable",
    "disallowed",
    "error",
)


def may_reopen(finish_reason: str | None, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """True if a completed job may go on: a quota ended it, and that quota is larger now.

    Args:
        finish_reason: of the job.
        before: its configuration as it was.
        after: its configuration as it is to be.
    """
    if finish_reason not in QUOTAS:
        return False
    had, has = before.get(finish_reason), after.get(finish_reason)
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (had, has))
    return numbers and bool(has > had)  # type: ignore[operator]


class InvalidJobTransition(ValueError):
    """A job was asked to move to a status that cannot follow its present one."""

    def __init__(self, job_id: str, current: str, wanted: str) -> None:
        following = ", ".join(sorted(TRANSITIONS[current])) or "nothing: it is finished"
        super().__init__(f"job {job_id} is {current} and cannot become {wanted}; what can follow is {following}")
