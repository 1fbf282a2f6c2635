"""Pages that a crawl would have removed, and did not, because they were most of their site.

Somebody looks, and if it is meant, they are removed. What is shown is what would be done: the same statement, rolled
back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from resources.postgres.frontier import UNLINKED_CRAWLS
from resources.postgres.jobs import UnknownJob

if TYPE_CHECKING:
    from sqlalchemy import Engine

# Pages that are named; beyond, they are counted.
NAMED_PAGES: Final = 20


class NothingHeldBack(RuntimeError):
    """The job has no removals that wait for somebody."""


@dataclass(frozen=True, slots=True)
class Removals:
    """Pages that go, or went.

    Attributes:
        job_id: the crawl that did not find them.
        customer_id: whose they are.
        accepted: they are removed now.
        alive: pages of its sites before.
        gone: 404 or 410. moved: a redirect. noindex: they ask not to be kept.
        disallowed: robots.txt forbids them. unlinked: nothing leads to them.
        pages: the first of them, by url and reason.
    """

    job_id: str
    customer_id: str
    accepted: bool
    alive: int
    gone: int
    moved: int
    noindex: int
    disallowed: int
    unlinked: int
    pages: tuple[tuple[str, str], ...]

    @property
    def total(self) -> int:
        """How many."""
        return self.gone + self.moved + self.noindex + self.disallowed + self.unlinked

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        pages = [{"url": url, "reason": reason} for url, reason in self.pages]
        return {**asdict(self), "total": self.total, "pages": pages}


_SETTLE = text("SELECT crawl_settle_pages(:job_id, '{}', :after, true)")
_REMOVED = text("""
    SELECT p.url, p.removed_reason FROM scraped_pages AS p JOIN scrape_jobs AS j ON j.customer_id = p.customer_id
    WHERE j.job_id = :job_id AND p.removed_at >= transaction_timestamp() AND p.xmin = pg_current_xact_id()::xid
    ORDER BY p.url LIMIT :limit
""")


def settle_held_back(engine: Engine, job_id: str, *, accept: bool, limit: int = NAMED_PAGES) -> Removals:
    """Remove the pages that a job held back, or say which they would be.

    A page that another crawl has found since stays.

    Args:
        engine: the permanent tier.
        job_id: a completed crawl.
        accept: remove them; else nothing is changed.
        limit: at most so many are named.

    Raises:
        UnknownJob: there is no such job.
        NothingHeldBack: it waits for nobody; nothing was changed.
    """
    with engine.connect() as connection, connection.begin() as transaction:
        job = connection.execute(
            text("""SELECT customer_id::text, status, removals FROM scrape_jobs
                    WHERE job_id = :job_id FOR NO KEY UPDATE"""),
            {"job_id": job_id},
        ).one_or_none()
        if job is None:
            raise UnknownJob(job_id)
        if job.removals is None:
            msg = f"job {job_id} is {job.status} and has decided about no page: only a completed crawl removes pages"
            raise NothingHeldBack(msg)
        if not job.removals.get("held_back"):
            msg = f"job {job_id} held back nothing: what it did not find any more was removed at its end"
            raise NothingHeldBack(msg)
        counts = connection.execute(_SETTLE, {"job_id": job_id, "after": UNLINKED_CRAWLS}).scalar_one()
        rows = connection.execute(_REMOVED, {"job_id": job_id, "limit": limit}).all()
        if not accept:
            transaction.rollback()
    return Removals(
        job_id,
        job.customer_id,
        accept,
        counts["alive"],
        counts["gone"],
        counts["moved"],
        counts["noindex"],
        counts["disallowed"],
        counts["unlinked"],
        tuple((row.url, row.removed_reason) for row in rows),
    )
