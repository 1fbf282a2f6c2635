"""The crawl's frontier in Postgres: what is known, who fetches it, what is done.

A url is waiting (no worker), leased (a worker, not done), done, or not to be followed (a skip reason). The lease
is the worker's, one row in `omniops_meta.crawl_workers`: a commit renews it, a takeover deletes it, and the commit
of a worker without a row is refused. So a dead worker's urls change hands in two statements, and its late commit
changes nothing.

Everything that a batch of pages brings goes through `commit`, one call of the SQL function `crawl_commit_batch`.
"""

from __future__ import annotations

import itertools
import os
import socket
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources.postgres.content import storable
from resources.postgres.discovery import Discovery
from resources.postgres.known_pages import KnownPages
from resources.postgres.page_html import keep_html

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection, Engine, Row, TextClause

    from resources.postgres.known_pages import KnownPage
    from resources.postgres.page_html import FetchedHtml

# A worker whose lease ran out is replaced. Half a minute is long against a commit (tens of milliseconds) and a
# heartbeat (a third of it), and keeps a takeover within a minute.
LEASE_SECONDS = 30.0

# A page that nothing leads to may be a mistake of one day; after so many whole crawls it is meant.
UNLINKED_CRAWLS = 3

_REPLACED = "OM001"
_DEADLOCK = "40P01"
# Two jobs at one customer's site may write the same pages in another order; one of the two is asked to try again.
_DEADLOCK_TRIES = 5


class WorkerReplaced(RuntimeError):
    """This worker's lease ran out and another worker has its urls now: it has to stop."""


@dataclass(frozen=True, slots=True)
class FrontierUrl:
    """A url to fetch.

    Attributes:
        hash: its 64-bit key.
        url: normal.
        depth: number of links from a seed.
        found_by: what led to it: `seed`, `link`, `sitemap`, or `known`: it was there before, and nothing has led to
            it yet.
        lastmod: when it changed last, by its sitemap.
    """

    hash: int
    url: str
    depth: int
    found_by: str = "seed"
    lastmod: datetime | None = None


@dataclass(frozen=True, slots=True)
class FoundLink:
    """A link to be entered; with a `skip_reason` it is remembered and not followed."""

    hash: int
    url: str
    depth: int
    skip_reason: str | None = None


@dataclass(slots=True)
class PageContent:
    """What is kept of a page. `text` None keeps the page's facts and no text.

    Attributes:
        source_hash: of what the page showed before its main text was taken out.
        content_hash: of the main text.
        folded_hash: of the main text without stamps and counters; the same one means a cosmetic change.
        simhash: of the main text, signed 64 bits.
        links: the page's links, packed; None leaves those that are kept.
        html: the page as it was fetched.
        published_at: as the page says.
    """

    domain: str
    title: str | None
    description: str | None
    canonical_url: str | None
    lang: str | None
    http_status: int
    etag: str | None
    last_modified: str | None
    content_hash: str | None
    text: str | None
    word_count: int
    markdown: str | None = None
    source_hash: str | None = None
    folded_hash: str | None = None
    simhash: int | None = None
    links: bytes | None = None
    html: FetchedHtml | None = None
    published_at: datetime | None = None


@dataclass(slots=True)
class FinishedUrl:
    """The outcome of one url. Times in milliseconds, sizes in bytes on the wire.

    `unchanged` is a page that is kept already and says what it said: only the time of the visit is put down, and the
    validators (`etag`, `last_modified`) that it came with.
    """

    hash: int
    url: str
    depth: int
    status: str
    http_status: int | None = None
    processing_time_ms: int | None = None
    error_message: str | None = None
    skip_reason: str | None = None
    content_hash: str | None = None
    tries: int = 1
    bytes: int | None = None
    redirected_to: str | None = None
    repairs: int = 0
    adopted: bool = False
    unchanged: bool = False
    etag: str | None = None
    last_modified: str | None = None
    content: PageContent | None = None


@dataclass(slots=True)
class Batch:
    """What one transaction brings."""

    finished: list[FinishedUrl] = field(default_factory=list)
    links: list[FoundLink] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit did.

    Attributes:
        owned: hashes of the new links that are now this worker's.
        acknowledged: hashes of the urls whose results were written.
        shared: whether other workers are at the job.
        known: of the new links, by url, what earlier crawls know; for the caller to fill in.
    """

    owned: frozenset[int]
    acknowledged: frozenset[int]
    shared: bool
    known: Mapping[str, KnownPage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Pages granted to a worker, how many other workers the job has, and what those have reserved and not used."""

    granted: int
    other_workers: int
    reserved_by_others: int


@dataclass(frozen=True, slots=True)
class JobLook:
    """A job as its workers look at it: the status, which any program may change, and what all of them have done.

    Attributes:
        status: of the job.
        total, successful, failed, skipped: results committed, earlier runs and other workers included.
        bytes: of those, on the wire.
    """

    status: str
    total: int
    successful: int
    failed: int
    skipped: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, so that a later one on the same machine can tell whether it still lives."""

    machine: str
    pid: int
    started: float


@cache
def _machine() -> str:
    """The boot and process namespace in which a pid of this process means something."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:  # not Linux: the boot time tells boots apart
        parts.append(str(int(psutil.boot_time())))
    return "/".join(parts)


def this_process() -> ProcessIdentity:
    """The identity of the running process."""
    return ProcessIdentity(_machine(), os.getpid(), psutil.Process().create_time())


def has_died(process: ProcessIdentity) -> bool:
    """True if the process is known to be gone; False if it lives or cannot be judged from here."""
    if process.machine != _machine():
        return False
    try:
        # Two processes with one pid differ in their start; a second of slack for clocks read differently.
        return abs(psutil.Process(process.pid).create_time() - process.started) > 1.0
    except psutil.NoSuchProcess:
        return True


_COMMIT = text("""
    SELECT owned, acknowledged, shared FROM crawl_commit_batch(
        :worker, :lease, :own_links, :mark_linked,
        CAST(:link_hash AS bigint[]), CAST(:link_url AS text[]), CAST(:link_depth AS integer[]),
        CAST(:link_skip AS text[]),
        CAST(:r_hash AS bigint[]), CAST(:r_url AS text[]), CAST(:r_depth AS integer[]),
        CAST(:r_adopted AS boolean[]), CAST(:r_status AS text[]), CAST(:r_http_status AS integer[]),
        CAST(:r_ms AS integer[]), CAST(:r_error AS text[]), CAST(:r_skip AS text[]),
        CAST(:r_content_hash AS text[]), CAST(:r_tries AS integer[]), CAST(:r_bytes AS bigint[]),
        CAST(:r_redirected_to AS text[]), CAST(:r_repairs AS integer[]),
        CAST(:seen_hash AS bigint[]), CAST(:seen_url AS text[]), CAST(:seen_etag AS text[]),
        CAST(:seen_last_modified AS text[]),
        CAST(:c_hash AS bigint[]), CAST(:c_url AS text[]), CAST(:c_domain AS text[]), CAST(:c_title AS text[]),
        CAST(:c_description AS text[]), CAST(:c_canonical_url AS text[]), CAST(:c_lang AS text[]),
        CAST(:c_published_at AS timestamptz[]), CAST(:c_http_status AS integer[]), CAST(:c_etag AS text[]),
        CAST(:c_last_modified AS text[]),
        CAST(:c_source_hash AS text[]), CAST(:c_content_hash AS text[]), CAST(:c_folded_hash AS text[]),
        CAST(:c_simhash AS bigint[]), CAST(:c_text AS text[]), CAST(:c_markdown AS text[]),
        CAST(:c_word_count AS integer[]), CAST(:c_links AS bytea[]))
""")


class CrawlFrontier:
    """One job's frontier.

    Args:
        engine: the permanent tier.
        job_id: the job.
        customer_id: whose job it is.
        lease_seconds: for how long a worker of it may be silent.
    """

    def __init__(
        self, engine: Engine, job_id: str, customer_id: UUID | str, *, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._engine = engine
        self.job_id = job_id
        self.lease_seconds = lease_seconds
        self._customer_id = str(customer_id)

    @property
    def known_pages(self) -> KnownPages:
        """What earlier crawls know of this customer's pages."""
        return KnownPages(self._engine, self._customer_id)

    @property
    def discovery(self) -> Discovery:
        """What the job has discovered beside the pages that it fetched."""
        return Discovery(self._engine, self.job_id, self._customer_id)

    # --- workers --------------------------------------------------------------------------------------------

    def register_worker(self, *, run_id: str | None = None, lease_seconds: float | None = None) -> int:
        """Make this process a worker of the job; the number returned is its fencing token."""
        me = this_process()
        with self._engine.begin() as connection:
            worker: int = connection.execute(
                text("""
                    INSERT INTO omniops_meta.crawl_workers
                        (job_id, customer_id, machine, pid, pid_started, run_id, leased_until)
                    VALUES (:job_id, :customer_id, :machine, :pid, :started, :run_id,
                            clock_timestamp() + make_interval(secs => :lease))
                    RETURNING worker_id
                """),
                {
                    "job_id": self.job_id,
                    "customer_id": self._customer_id,
                    "machine": me.machine,
                    "pid": me.pid,
                    "started": me.started,
                    "run_id": run_id,
                    "lease": lease_seconds or self.lease_seconds,
                },
            ).scalar_one()
        return worker

    def heartbeat(self, worker: int) -> str:
        """Renew the lease and learn the job's status, which another program may have changed.

        Raises:
            WorkerReplaced: the lease ran out before and was taken.
        """
        with self._engine.begin() as connection:
            status: str | None = connection.scalar(
                text("""
                    UPDATE omniops_meta.crawl_workers AS w
                    SET leased_until = clock_timestamp() + make_interval(secs => :lease)
                    FROM scrape_jobs AS j
                    WHERE w.worker_id = :worker AND j.job_id = w.job_id RETURNING j.status
                """),
                {"worker": worker, "lease": self.lease_seconds},
            )
        if status is None:
            raise self._replaced(worker)
        return status

    def look(self) -> JobLook | None:
        """The job's status and counters: two rows by their keys, nothing locked. None: the job is gone."""
        with self._engine.connect() as connection:
            row = connection.execute(
                text("""
                    SELECT j.status, coalesce(s.total_pages, 0), coalesce(s.successful_pages, 0),
                           coalesce(s.failed_pages, 0), coalesce(s.skipped_pages, 0), coalesce(s.total_bytes, 0)
                    FROM scrape_jobs AS j LEFT JOIN scrape_job_stats AS s ON s.job_id = j.job_id
                    WHERE j.job_id = :job_id
                """),
                {"job_id": self.job_id},
            ).one_or_none()
        return None if row is None else JobLook(row[0], row[1], row[2], row[3], row[4], int(row[5]))

    def rest(self, worker: int) -> None:
        """Say that this worker has nothing to do, and give back the pages that it reserved: others may use them.

        Raises:
            WorkerReplaced: the lease ran out before and was taken.
        """
        with self._engine.begin() as connection:
            found = connection.execute(
                text("""
                    UPDATE omniops_meta.crawl_workers SET busy = false, pages_left = 0,
                        leased_until = clock_timestamp() + make_interval(secs => :lease)
                    WHERE worker_id = :worker
                """),
                {"worker": worker, "lease": self.lease_seconds},
            ).rowcount
        if not found:
            raise self._replaced(worker)

    def take_over_dead_workers(self) -> int:
        """Free the urls of workers that are gone: lease run out, or process known to be dead.

        Returns:
            How many workers were replaced.
        """
        with self._engine.begin() as connection:
            workers = connection.execute(
                text("""
                    SELECT worker_id, machine, pid, pid_started, leased_until < clock_timestamp() AS expired
                    FROM omniops_meta.crawl_workers WHERE job_id = :job_id ORDER BY worker_id
                """),
                {"job_id": self.job_id},
            ).all()
            suspects = [
                w.worker_id
                for w in workers
                if w.expired or has_died(ProcessIdentity(w.machine, w.pid, w.pid_started))
            ]
            if not suspects:
                return 0
            # Deleting the row waits for a commit in flight, and refuses every later one.
            removed = connection.scalars(
                text("""
                    DELETE FROM omniops_meta.crawl_workers
                    WHERE worker_id IN (
                        SELECT worker_id FROM omniops_meta.crawl_workers
                        WHERE worker_id = ANY (:suspects) ORDER BY worker_id FOR UPDATE)
                    RETURNING worker_id
                """),
                {"suspects": suspects},
            ).all()
            self._free(connection, list(removed))
        return len(removed)

    def release_worker(self, worker: int) -> None:
        """Give back what is unfinished and stop being a worker."""
        with self._engine.begin() as connection:
            connection.execute(
                text("DELETE FROM omniops_meta.crawl_workers WHERE worker_id = :worker"), {"worker": worker}
            )
            self._free(connection, [worker])

    def hand_back(self, worker: int, hashes: Sequence[int]) -> None:
        """Let others have these urls: this worker has not begun with them."""
        with self._engine.begin() as connection:
            connection.execute(
                text("""
                    UPDATE crawl_frontier SET worker_id = NULL
                    WHERE job_id = :job_id AND url_hash = ANY (CAST(:hashes AS bigint[])) AND worker_id = :worker
                      AND NOT done
                """),
                {"job_id": self.job_id, "hashes": list(hashes), "worker": worker},
            )

    def _free(self, connection: Connection, workers: list[int]) -> None:
        connection.execute(
            text("""
                UPDATE crawl_frontier SET worker_id = NULL
                WHERE job_id = :job_id AND worker_id = ANY (:workers) AND NOT done
            """),
            {"job_id": self.job_id, "workers": workers},
        )

    # --- urls -----------------------------------------------------------------------------------------------

    def seed(self, urls: Sequence[FrontierUrl]) -> int:
        """Enter urls that the job has not; returns how many were new to it.

        One that was entered as `known` and is named by a start url or a sitemap now is no longer only that.
        """
        urls = list({url.hash: url for url in urls}.values())
        with self._engine.begin() as connection:
            return connection.execute(
                text("""
                    INSERT INTO crawl_frontier AS f (job_id, url_hash, customer_id, url, depth, found_by, lastmod)
                    SELECT :job_id, s.hash, :customer_id, s.url, s.depth, s.found_by, s.lastmod
                    FROM unnest(CAST(:hashes AS bigint[]), CAST(:urls AS text[]), CAST(:depths AS integer[]),
                                CAST(:found_by AS text[]), CAST(:lastmod AS timestamptz[]))
                             WITH ORDINALITY AS s (hash, url, depth, found_by, lastmod, ordinal)
                    ORDER BY s.ordinal
                    ON CONFLICT (job_id, url_hash) DO UPDATE
                        SET found_by = EXCLUDED.found_by, lastmod = coalesce(EXCLUDED.lastmod, f.lastmod)
                        WHERE f.found_by = 'known' AND EXCLUDED.found_by <> 'known'
                """),
                {
                    "job_id": self.job_id,
                    "customer_id": self._customer_id,
                    "hashes": [u.hash for u in urls],
                    "urls": [u.url for u in urls],
                    "depths": [u.depth for u in urls],
                    "found_by": [u.found_by for u in urls],
                    "lastmod": [u.lastmod for u in urls],
                },
            ).rowcount

    def claim(self, worker: int, limit: int) -> list[FrontierUrl]:
        """Lease up to `limit` waiting urls to the worker, those nearest to a seed first."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                text("""
                    WITH chosen AS (
                        SELECT url_hash FROM crawl_frontier
                        WHERE job_id = :job_id AND worker_id IS NULL AND skip_reason IS NULL
                        ORDER BY depth, position LIMIT :limit FOR UPDATE SKIP LOCKED
                    )
                    UPDATE crawl_frontier AS f SET worker_id = w.worker_id
                    FROM chosen, omniops_meta.crawl_workers AS w
                    WHERE f.job_id = :job_id AND f.url_hash = chosen.url_hash AND w.worker_id = :worker
                    RETURNING f.url_hash, f.url, f.depth, f.position, f.found_by, f.lastmod
                """),
                {"job_id": self.job_id, "worker": worker, "limit": limit},
            ).all()
        rows = sorted(rows, key=lambda row: (row.depth, row.position))
        return [FrontierUrl(row.url_hash, row.url, row.depth, row.found_by, row.lastmod) for row in rows]

    def reserve_pages(self, worker: int, want: int, max_pages: int) -> Reservation:
        """Reserve part of `max_pages` for the worker; what is granted may be fetched, and not one more.

        Pages done and pages reserved by live workers never exceed `max_pages`, because both are counted under
        the lock on the job's row, and a commit turns one into the other.

        Raises:
            WorkerReplaced: the lease ran out before and was taken.
        """
        with self._engine.begin() as connection:
            connection.execute(
                text("SELECT 1 FROM scrape_jobs WHERE job_id = :job_id FOR NO KEY UPDATE"), {"job_id": self.job_id}
            )
            granted: int | None = connection.execute(
                text("""
                    UPDATE omniops_meta.crawl_workers AS w
                    SET pages_left = w.pages_left + g.granted, busy = w.busy OR g.granted > 0
                    FROM (
                        SELECT greatest(0, least(:want, :max_pages
                            - coalesce((SELECT total_pages FROM scrape_job_stats WHERE job_id = :job_id), 0)
                            - coalesce((SELECT sum(pages_left) FROM omniops_meta.crawl_workers
                                        WHERE job_id = :job_id), 0))) AS granted
                    ) AS g
                    WHERE w.worker_id = :worker RETURNING g.granted
                """),
                {"job_id": self.job_id, "worker": worker, "want": want, "max_pages": max_pages},
            ).scalar_one_or_none()
            if granted is None:
                raise self._replaced(worker)
            others = connection.execute(
                text("""
                    SELECT count(*) AS workers, coalesce(sum(pages_left), 0) AS pages
                    FROM omniops_meta.crawl_workers WHERE job_id = :job_id AND worker_id <> :worker
                """),
                {"job_id": self.job_id, "worker": worker},
            ).one()
        return Reservation(int(granted), int(others.workers), int(others.pages))

    def commit(
        self,
        worker: int,
        batch: Batch,
        *,
        own_links: int,
        mark_linked: bool = False,
        keep_html_days: int = 0,
    ) -> Committed:
        """Write a batch in one transaction: links, acknowledgements, content, results.

        Args:
            worker: the fencing token.
            batch: finished urls and the links that they hold.
            own_links: so many of the new links may become this worker's at once; the rest wait for anyone.
            mark_linked: the job began with urls that were known before; put down which of them are linked.
            keep_html_days: pages are kept as they were fetched for so long; 0: not at all.

        Raises:
            WorkerReplaced: another worker has taken over; nothing was written.
            DBAPIError: the database refused or was lost; nothing was written, or all of it was (a commit whose
                answer was lost): writing the same batch again is safe either way.
        """
        finished, links = batch.finished, batch.links
        pages = [(f, f.content) for f in finished if f.content is not None]
        seen = [f for f in finished if f.unchanged]
        parameters = {
            "worker": worker,
            "lease": self.lease_seconds,
            "own_links": own_links,
            "mark_linked": mark_linked,
            "link_hash": [link.hash for link in links],
            "link_url": [link.url for link in links],
            "link_depth": [link.depth for link in links],
            "link_skip": [link.skip_reason for link in links],
            "r_hash": [f.hash for f in finished],
            "r_url": [f.url for f in finished],
            "r_depth": [f.depth for f in finished],
            "r_adopted": [f.adopted for f in finished],
            "r_status": [f.status for f in finished],
            "r_http_status": [f.http_status for f in finished],
            "r_ms": [f.processing_time_ms for f in finished],
            "r_error": [storable(f.error_message) for f in finished],
            "r_skip": [f.skip_reason for f in finished],
            "r_content_hash": [f.content_hash for f in finished],
            "r_tries": [f.tries for f in finished],
            "r_bytes": [f.bytes for f in finished],
            "r_redirected_to": [storable(f.redirected_to) for f in finished],
            "r_repairs": [f.repairs for f in finished],
            "seen_hash": [f.hash for f in seen],
            "seen_url": [f.url for f in seen],
            "seen_etag": [storable(f.etag) for f in seen],
            "seen_last_modified": [storable(f.last_modified) for f in seen],
            "c_hash": [f.hash for f, _ in pages],
            "c_url": [f.url for f, _ in pages],
            "c_domain": [c.domain for _, c in pages],
            "c_title": [storable(c.title) for _, c in pages],
            "c_description": [storable(c.description) for _, c in pages],
            "c_canonical_url": [storable(c.canonical_url) for _, c in pages],
            "c_lang": [storable(c.lang) for _, c in pages],
            "c_published_at": [c.published_at for _, c in pages],
            "c_http_status": [c.http_status for _, c in pages],
            "c_etag": [storable(c.etag) for _, c in pages],
            "c_last_modified": [storable(c.last_modified) for _, c in pages],
            "c_source_hash": [c.source_hash for _, c in pages],
            "c_content_hash": [c.content_hash for _, c in pages],
            "c_folded_hash": [c.folded_hash for _, c in pages],
            "c_simhash": [c.simhash for _, c in pages],
            "c_text": [storable(c.text) for _, c in pages],
            "c_markdown": [storable(c.markdown) for _, c in pages],
            "c_word_count": [c.word_count for _, c in pages],
            "c_links": [c.links for _, c in pages],
        }
        kept = [(f.hash, c.html) for f, c in pages if c.html is not None] if keep_html_days else []

        def keep(connection: Connection, row: Row[Any]) -> None:
            acknowledged = frozenset(row.acknowledged)
            html = [page for key, page in kept if key in acknowledged]
            keep_html(connection, self._customer_id, html, keep_html_days)

        try:
            row = self._in_transaction(_COMMIT, parameters, keep if kept else None)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == _REPLACED:
                raise self._replaced(worker) from error
            raise
        return Committed(frozenset(row.owned), frozenset(row.acknowledged), row.shared)

    def anything_left(self, worker: int) -> bool:
        """True if urls wait, or another worker has some or may still find some. Read in one snapshot.

        A worker whose lease ran out counts until it is taken over: only then do its urls wait for others.
        """
        with self._engine.connect() as connection:
            return bool(
                connection.scalar(
                    text("""
                        SELECT EXISTS (SELECT 1 FROM crawl_frontier
                                       WHERE job_id = :job_id AND worker_id IS NULL AND skip_reason IS NULL)
                            OR EXISTS (SELECT 1 FROM omniops_meta.crawl_workers
                                       WHERE job_id = :job_id AND worker_id <> :worker AND busy)
                    """),
                    {"job_id": self.job_id, "worker": worker},
                )
            )

    def live_workers(self) -> int:
        """How many workers hold a lease on the job."""
        with self._engine.connect() as connection:
            return int(
                connection.scalar(
                    text("""
                        SELECT count(*) FROM omniops_meta.crawl_workers
                        WHERE job_id = :job_id AND leased_until > clock_timestamp()
                    """),
                    {"job_id": self.job_id},
                )
                or 0
            )

    def has_waiting_urls(self) -> bool:
        """True if a url is known, to be followed, and not done."""
        with self._engine.connect() as connection:
            return bool(
                connection.scalar(
                    text("""
                        SELECT EXISTS (SELECT 1 FROM crawl_frontier
                                       WHERE job_id = :job_id AND worker_id IS NULL AND skip_reason IS NULL)
                    """),
                    {"job_id": self.job_id},
                )
            )

    def settle_pages(
        self, whole_sites: Sequence[str], *, after: int = UNLINKED_CRAWLS, accept_losses: bool = False
    ) -> dict[str, Any]:
        """Decide what becomes of pages that the job did not find, once; a later call gives what was decided.

        Args:
            whole_sites: sites that the job went through from their root, with nothing left to fetch.
            after: a page to which so many whole crawls in a row found no link and no sitemap entry is removed.
            accept_losses: remove what was held back: somebody looked, and it is meant.

        Returns:
            Counts of pages: `alive` before, `gone`, `moved`, `noindex`, `disallowed`, `unlinked`; and `held_back`:
            True where more than half of the pages would have been removed, and none was.
        """
        settled: dict[str, Any] = self._in_transaction(
            text("SELECT crawl_settle_pages(:job_id, CAST(:sites AS text[]), :after, :accept)"),
            {"job_id": self.job_id, "sites": list(whole_sites), "after": after, "accept": accept_losses},
        )[0]
        return settled

    def _in_transaction(
        self,
        statement: TextClause,
        parameters: dict[str, Any],
        then: Callable[[Connection, Row[Any]], None] | None = None,
    ) -> Row[Any]:
        """The one row of a statement in a transaction of its own, which is tried again after a deadlock.

        Args:
            statement: gives one row.
            parameters: its own.
            then: what else belongs to the transaction; it is given the row.
        """
        for tried in itertools.count(1):
            try:
                with self._engine.begin() as connection:
                    row = connection.execute(statement, parameters).one()
                    if then is not None:
                        then(connection, row)
                    return row
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _DEADLOCK or tried == _DEADLOCK_TRIES:
                    raise
        raise AssertionError  # the loop has no end

    def record_unfollowed(self, limit: int) -> int:
        """Give a `skipped` result to the urls that were found and, by depth, globs or traps, not followed.

        At the end of a job that saw all of its site; before that a shorter way to such a url may still be found.

        Args:
            limit: at most so many rows in a job, the same for each reason as far as it has any; a site can have more
                of them than it has pages.
        """
        with self._engine.begin() as connection:
            return connection.execute(
                text("""
                    WITH reasons AS (
                        SELECT DISTINCT skip_reason FROM crawl_frontier
                        WHERE job_id = :job_id AND skip_reason IS NOT NULL
                    ), ranked AS (
                        SELECT u.url_hash, u.done, u.rank
                        FROM reasons AS r, LATERAL (
                            SELECT f.url_hash, f.done, row_number() OVER (ORDER BY NOT f.done, f.url_hash) AS rank
                            FROM crawl_frontier AS f WHERE f.job_id = :job_id AND f.skip_reason = r.skip_reason
                            ORDER BY NOT f.done, f.url_hash LIMIT :limit) AS u
                        ORDER BY u.rank, u.url_hash LIMIT :limit
                    ), marked AS (
                        UPDATE crawl_frontier AS f SET done = true FROM ranked AS r
                        WHERE f.job_id = :job_id AND f.url_hash = r.url_hash AND NOT f.done
                        RETURNING f.customer_id, f.url, f.skip_reason, f.depth
                    )
                    INSERT INTO scrape_job_results (job_id, customer_id, url, status, skip_reason, depth, tries)
                    SELECT :job_id, m.customer_id, m.url, 'skipped', m.skip_reason, m.depth, 0 FROM marked AS m
                    ON CONFLICT (job_id, url) DO NOTHING
                """),
                {"job_id": self.job_id, "limit": limit},
            ).rowcount

    def _replaced(self, worker: int) -> WorkerReplaced:
        return WorkerReplaced(
            f"this worker ({worker}) was silent for longer than its lease of {self.lease_seconds:g} s, and another "
            "one took over its urls: it stops, and nothing is lost"
        )
