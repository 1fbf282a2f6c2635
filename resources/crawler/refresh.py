"""The refresh: a job is queued for each website that is due, once for each interval, by its customer's configuration.

What is queued is a row of `scrape_jobs`; who starts it is somebody else's business. Two refreshes at once, or one
that is repeated, make the same ids, and so the same jobs. A configuration that cannot be read is reported with its
reason and stands in nobody's way.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from resources.crawler.crawl_order import InvalidOrder
from resources.crawler.stored_order import check_domain, plan_for_site
from resources.postgres.refresh import MAX_EVERY_HOURS, MIN_EVERY_HOURS, SiteDue, sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Engine

    from resources.crawler.plan import CrawlPlan
    from resources.postgres.jobs import PersistentJobManager

# What is queued; where nothing is known of a site, such a job crawls all of it.
JOB_TYPE: Final = "incremental"

# What a refresh may queue at once: a backlog of days is worked off in hours, and no hour's queue is endless.
DEFAULT_MAX_JOBS: Final = 1_000
MAX_JOBS: Final = 100_000

# Jobs of one transaction.
_BATCH: Final = 500
# Sites that are named for each outcome; beyond, they are counted.
_NAMED: Final = 100

# Outcomes, in the order of what a person wants to know first.
OUTCOMES: Final = ("invalid", "queued", "due", "postponed", "taken", "unfinished", "recent", "never")


class InvalidRefresh(ValueError):
    """What was asked of a refresh cannot be done."""


@dataclass(frozen=True, slots=True)
class SiteOutcome:
    """What a refresh did with one website.

    Attributes:
        customer: slug.
        domain: of the configuration.
        outcome: `queued`; `due` (in a dry run: would be queued); `postponed` (the refresh had queued enough, the next
            one goes on); `taken` (a job with this id is there already); `unfinished`, `recent`, `never` (it is not
            due); `invalid`.
        job_id: of the job that was queued, or that stands in the way.
        reason: in words.
    """

    customer: str
    domain: str
    outcome: str
    job_id: str | None
    reason: str


@dataclass(slots=True)
class RefreshResult:
    """What a refresh did.

    Attributes:
        dry_run: True if it only looked.
        now: the moment that it asked about.
        counts: sites by outcome, all of them.
        named: the first hundred sites of each outcome.
    """

    dry_run: bool
    now: datetime
    counts: Counter[str] = field(default_factory=Counter)
    named: list[SiteOutcome] = field(default_factory=list)

    def add(self, outcome: SiteOutcome) -> None:
        """Count a site, and name it while there are few."""
        self.counts[outcome.outcome] += 1
        if self.counts[outcome.outcome] <= _NAMED:
            self.named.append(outcome)

    def sorted(self) -> list[SiteOutcome]:
        """The named sites, by outcome."""
        return sorted(self.named, key=lambda o: (OUTCOMES.index(o.outcome), o.customer, o.domain))


def job_id_for(customer: str, site: str, every_hours: float, now: datetime) -> str:
    """The id of a site's refresh: the same for the whole of its interval, at most 200 bytes.

    A slug has no underscore, so no two sites share an id: `refresh-20261124-acme_shop.example`. Intervals shorter
    than a day add their number within it: `refresh-20261124.3-acme_shop.example`.
    """
    day = now.astimezone(UTC)
    slot = ""
    if every_hours < 24:
        hours = day.hour + day.minute / 60
        slot = f".{int(hours // every_hours)}"
    job_id = f"refresh-{day:%Y%m%d}{slot}-{customer}_{site}"
    if len(job_id.encode()) > 200:
        digest = hashlib.blake2b(site.encode(), digest_size=8).hexdigest()
        job_id = f"{job_id.encode()[:183].decode(errors='ignore')}-{digest}"
    return job_id


def check_max_jobs(max_jobs: int) -> int:
    """Return the number.

    Raises:
        InvalidRefresh: it is out of range.
    """
    if not 1 <= max_jobs <= MAX_JOBS:
        msg = f"max_jobs is {max_jobs}, but it must be between 1 and {MAX_JOBS:,} jobs"
        raise InvalidRefresh(msg)
    return max_jobs


@dataclass(frozen=True, slots=True)
class _Job:
    """A job that is to be queued."""

    site: SiteDue
    job_id: str
    domain: str
    plan: CrawlPlan


def plan_site(site: SiteDue, now: datetime) -> _Job:
    """The job of a site that is due.

    Raises:
        InvalidOrder: its configuration cannot be read; the message says which part.
    """
    if site.every_hours is None:
        schedule = (site.settings or {}).get("schedule")
        value = schedule.get("every_hours") if isinstance(schedule, dict) else schedule
        where = "settings.schedule.every_hours" if isinstance(schedule, dict) else "settings.schedule"
        wanted = (
            f"a number of hours from {MIN_EVERY_HOURS} to {MAX_EVERY_HOURS:,}, or 0 or false for never"
            if isinstance(schedule, dict)
            else 'an object such as {"every_hours": 24}'
        )
        msg = f"{where} is {value!r:.80}, but it must be {wanted}"
        raise InvalidOrder(msg)
    plan = plan_for_site(site.customer, site.domain, site.settings or {}, JOB_TYPE)
    domain = check_domain(site.domain)
    return _Job(site, job_id_for(site.customer, domain, site.every_hours, now), domain, plan)


def refresh(
    engine: Engine,
    manager: PersistentJobManager,
    *,
    dry_run: bool,
    max_jobs: int = DEFAULT_MAX_JOBS,
    now: datetime | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> RefreshResult:
    """Queue a job for each enabled site that is due.

    Args:
        engine: the permanent tier, as the role that runs the program.
        manager: the audit trail, in which the jobs are recorded.
        dry_run: look only.
        max_jobs: at most so many are queued; the rest waits for the next refresh.
        now: the moment; the database's clock by default.
        on_batch: called after each transaction with the jobs queued so far; an exception from it ends the refresh.

    Raises:
        InvalidRefresh: `max_jobs` is out of range; nothing was done.
    """
    check_max_jobs(max_jobs)
    if now is None:
        with engine.connect() as connection:
            now = connection.execute(text("SELECT now()")).scalar_one()
    result = RefreshResult(dry_run, now)
    chosen: list[_Job] = []
    found = 0
    for job in _due(engine, result, now):
        found += 1
        if found > max_jobs:
            reason = f"this refresh queues {max_jobs:,} jobs at most, the next one goes on"
            result.add(_outcome(job, "postponed", reason))
            continue
        chosen.append(job)
        if len(chosen) == _BATCH:
            _queue(manager, result, chosen)
            chosen.clear()
            if on_batch is not None:
                on_batch(result.counts["queued"])
    _queue(manager, result, chosen)
    return result


def _due(engine: Engine, result: RefreshResult, now: datetime) -> Iterable[_Job]:
    """The sites that are due and can be crawled; the others are put down in the result."""
    with engine.connect() as connection:
        for site in sites(connection, now):
            if site.state not in ("due", "invalid"):
                result.add(SiteOutcome(site.customer, site.domain, site.state, site.job_id, _why_not(site)))
                continue
            try:
                job = plan_site(site, now)
            except InvalidOrder as error:
                result.add(SiteOutcome(site.customer, site.domain, "invalid", None, str(error)))
                continue
            yield job


def _why_not(site: SiteDue) -> str:
    if site.state == "never":
        return "its configuration asks for no refresh (schedule.every_hours is 0 or false)"
    since = f"{site.since.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if site.since else "before"
    if site.state == "unfinished":
        return f"a job of {since} waits or is under way"
    return f"crawled every {site.every_hours:g} hours, and last asked for at {since}"


def _queue(manager: PersistentJobManager, result: RefreshResult, batch: Iterable[_Job]) -> None:
    jobs: dict[str, _Job] = {}
    for job in batch:
        if job.job_id in jobs:
            other = jobs[job.job_id].site.domain
            result.add(_outcome(job, "taken", f"the customer has this site twice: {other} and {job.site.domain}"))
        else:
            jobs[job.job_id] = job
    if result.dry_run:
        for job in jobs.values():
            result.add(_outcome(job, "due", _why_due(job.site)))
        return
    made = set(manager.create_jobs(_record(job) for job in jobs.values()))
    for job in jobs.values():
        if job.job_id in made:
            result.add(_outcome(job, "queued", _why_due(job.site)))
        else:
            reason = "a job with this id is there already, or the customer has just been erased"
            result.add(_outcome(job, "taken", reason))


def _record(job: _Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "customer_id": job.site.customer_id,
        "domain": job.domain,
        "job_type": job.plan.job_type,
        "config": job.plan.as_config(),
        "data": {"queued_by": "refresh", "config_id": str(job.site.config_id)},
    }


def _outcome(job: _Job, outcome: str, reason: str) -> SiteOutcome:
    return SiteOutcome(job.site.customer, job.site.domain, outcome, job.job_id, reason)


def _why_due(site: SiteDue) -> str:
    return f"no job of it within {site.every_hours:g} hours, and none under way"
