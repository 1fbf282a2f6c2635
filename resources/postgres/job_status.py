"""The life of a scrape job: which status may follow which.

The database enforces the same table (`scrape_job_may_move`), and a test compares the two.
"""

from __future__ import annotations

from typing import Final

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


class InvalidJobTransition(ValueError):
    """A job was asked to move to a status that cannot follow its present one."""

    def __init__(self, job_id: str, current: str, wanted: str) -> None:
        following = ", ".join(sorted(TRANSITIONS[current])) or "nothing: it is finished"
        super().__init__(f"job {job_id} is {current} and cannot become {wanted}; what can follow is {following}")
