"""The audit trail of scrape jobs, in Redis (fast, expires) and in Postgres (for good) at once."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from resources.postgres.job_status import (
    FINISH_REASONS,
    JOB_TYPES,
    RESULT_STATUSES,
    STATUSES,
    TRANSITIONS,
    UNFINISHED,
    InvalidJobTransition,
    may_reopen,
)
from resources.redis.cache import ReadThroughCache
from resources.redis.keys import CRAWL_JOB, CRAWL_RESULTS, ValueTooLarge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection, Engine

    from resources.redis.client import RedisWithFallback

logger = logging.getLogger(__name__)

# A message is for a person: what exceeds this says nothing more. The head and the tail are kept.
MAX_ERROR_MESSAGE = 4_000

# Of a page's text, so much goes into the cache, and of a job, so many pages: the cache is for looking at what
# is under way, Postgres has all of it.
MAX_CACHED_TEXT = 32_000
MAX_CACHED_RESULTS = 10_000
# Results in one value: with texts of the greatest length some megabytes, before they are compressed.
_RESULTS_IN_A_VALUE = 100
_VALUES_AT_ONCE = 10

# A cached job that has ended does not change any more. Another one may be old: whoever changed it may have died
# before Redis could be told. So it is believed for so long.
CHANGING_JOB_SECONDS = 5.0


# NUL cannot be kept, and the two separators are used between values.
_UNSTORABLE = {0x00: None, 0x1E: " ", 0x1F: " "}


class UnknownJob(LookupError):
    """There is no job with this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id!r}: `omniops jobs list` shows those that there are")


class JobIdTaken(ValueError):
    """The id belongs to another job already."""


@dataclass(frozen=True, slots=True)
class JobStats:
    """Counters of a job.

    Attributes:
        total_pages: rows of the job; the sum of the next three.
        successful_pages: urls fetched and kept.
        failed_pages: urls that could not be had.
        skipped_pages: urls left out, each with its reason.
        avg_processing_time_ms: mean over the rows that have a time, in milliseconds; None without any.
        pages_per_second: `total_pages` over the job's active seconds; 0 before it starts.
        total_bytes: of the pages' answers on the wire.
    """

    total_pages: int = 0
    successful_pages: int = 0
    failed_pages: int = 0
    skipped_pages: int = 0
    avg_processing_time_ms: int | None = None
    pages_per_second: float = 0.0
    total_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def clean_message(message: str | None) -> str | None:
    """A message that Postgres can hold and a person can read: no NUL, no half surrogates, bounded."""
    if message is None:
        return None
    if message.isascii() and message.isprintable() and len(message) <= MAX_ERROR_MESSAGE:
        return message
    cleaned = message.translate(_UNSTORABLE).encode("utf-8", "replace").decode("utf-8")
    if len(cleaned) > MAX_ERROR_MESSAGE:
        half = MAX_ERROR_MESSAGE // 2
        left_out = len(cleaned) - MAX_ERROR_MESSAGE
        cleaned = f"{cleaned[:half]} … {left_out} characters left out … {cleaned[-half:]}"
    return cleaned


def _json_default(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    msg = f"{type(value).__name__} has no JSON form"
    raise TypeError(msg)


def to_json(value: object) -> str:
    """JSON with ISO 8601 times and plain uuids."""
    return json.dumps(value, default=_json_default, ensure_ascii=False)


_INSERT_RESULTS = text("""
    INSERT INTO scrape_job_results (
        job_id, customer_id, url, status, http_status, processing_time_ms, error_message, skip_reason, content_hash)
    SELECT j.job_id, j.customer_id, r.url, r.status, r.http_status, r.ms, r.error, r.skip, r.content_hash
    FROM unnest(string_to_array(:urls, chr(31), chr(30)), string_to_array(:statuses, chr(31), chr(30)),
                CAST(:http AS integer[]), CAST(:ms AS integer[]), string_to_array(:errors, chr(31), chr(30)),
                string_to_array(:skips, chr(31), chr(30)), string_to_array(:hashes, chr(31), chr(30)))
             AS r (url, status, http_status, ms, error, skip, content_hash)
    CROSS JOIN (SELECT job_id, customer_id FROM scrape_jobs WHERE job_id = :job_id) AS j
    ON CONFLICT (job_id, url) DO UPDATE SET
        status = EXCLUDED.status, http_status = EXCLUDED.http_status,
        processing_time_ms = EXCLUDED.processing_time_ms, error_message = EXCLUDED.error_message,
        skip_reason = EXCLUDED.skip_reason, content_hash = EXCLUDED.content_hash
""")

_RESULT_COLUMNS = (
    "url, status, http_status, processing_time_ms, error_message, skip_reason, content_hash, depth, tries, "
    "bytes, redirected_to, repairs, created_at"
)

_JOB_COLUMNS = (
    "j.job_id, j.customer_id, c.slug AS customer, j.domain, j.job_type, j.status, j.config, j.metadata, "
    "j.created_at, j.started_at, j.completed_at, j.finish_reason, j.error_message, j.run_id, "
    "scrape_job_active_seconds(j) AS active_seconds"
)


class PersistentJobManager:
    """A job's life from its creation to its end, in both stores.

    Writing goes to Postgres first: what the cache misses is read again from there, never the other way round.

    Args:
        engine: the permanent tier.
        cache: the ephemeral tier, which may be away; None: everything is read from Postgres.

    Attributes:
        cache: the ephemeral tier, as it was given.
    """

    def __init__(self, engine: Engine, cache: RedisWithFallback | None) -> None:
        self._engine = engine
        self.cache = cache
        self._read_through = None if cache is None else ReadThroughCache(cache)

    # --- creation -------------------------------------------------------------------------------------------

    def create_job(self, job_id: str, data: Mapping[str, Any] | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Record a new job as `queued`. The same job twice is one job.

        Args:
            job_id: up to 200 bytes.
            data: free-form facts to keep with the job.
            metadata: `customer_id`, `domain`, `job_type`, `config`; `job_id` too, equal to the first argument.
                `run_id` of the Dagster run that makes the job for itself; jobs that wait for a run have none.

        Returns:
            The job, as `get_job` gives it.

        Raises:
            ValueError: a field is missing or unknown.
            JobIdTaken: another job has this id.
        """
        row = _job_row(job_id, data, metadata)
        with self._engine.begin() as connection:
            try:
                made = connection.execute(
                    text("""
                        INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, config, metadata, run_id)
                        VALUES (:job_id, :customer_id, :domain, :job_type,
                                CAST(:config AS jsonb), CAST(:metadata AS jsonb), :run_id)
                        ON CONFLICT (job_id) DO NOTHING
                    """),
                    row,
                )
            except IntegrityError as error:
                msg = f"job {job_id} cannot be created: there is no customer {metadata['customer_id']}"
                raise ValueError(msg) from error
            job = self._read_job(connection, job_id)
        if job is None:
            raise UnknownJob(job_id)
        if made.rowcount == 0:
            same = (
                str(job["customer_id"]) == row["customer_id"]
                and job["domain"] == row["domain"]
                and job["job_type"] == row["job_type"]
                and job["config"] == json.loads(row["config"])
            )
            if not same:
                msg = (
                    f"job id {job_id!r} is taken by another job (customer {job['customer']}, {job['domain']}): "
                    "choose another id, or leave it out to have one made"
                )
                raise JobIdTaken(msg)
        self._cache_job(job)
        return job

    def create_jobs(self, jobs: Iterable[Mapping[str, Any]]) -> list[str]:
        """Record many new jobs as `queued`, in one transaction. Ids that there are already are left alone.

        Args:
            jobs: metadata of each as `create_job` takes it, with its `job_id`, and `data` beside.

        Returns:
            The ids that are new. A job whose customer is gone has not been made.

        Raises:
            ValueError: a field is missing or unknown; nothing is written then.
        """
        rows = [_job_row(job["job_id"], job.get("data"), job) for job in jobs]
        if not rows:
            return []
        # In one order, whoever inserts: two callers with the same ids wait for each other and never both.
        rows.sort(key=lambda row: str(row["job_id"]))
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        try:
            made = self._insert_jobs(columns)
        except IntegrityError:
            # A customer was erased between the statement's reading and its check; the next reading leaves it out.
            made = self._insert_jobs(columns)
        if made:
            with self._engine.connect() as connection:
                found = connection.execute(
                    text(f"""
                        SELECT {_JOB_COLUMNS} FROM scrape_jobs AS j JOIN customers AS c ON c.id = j.customer_id
                        WHERE j.job_id = ANY (:made)
                    """),  # noqa: S608 - the columns are a constant
                    {"made": made},
                )
                self._cache_jobs([dict(row) for row in found.mappings()])
        return made

    # --- results --------------------------------------------------------------------------------------------

    def add_job_result(self, job_id: str, page: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Record the outcome of one url. See `add_job_results`."""
        self.add_job_results(job_id, [(page, result)])

    def add_job_results(self, job_id: str, batch: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> int:
        """Record the outcomes of many urls in one round trip; a url that has one already gets the new one.

        Args:
            job_id: the job.
            batch: pairs of page (`url`, `title`, `text`, … for the cache) and result (`url`, `status`,
                `http_status`, `processing_time_ms`, `error_message`, `skip_reason`, `content_hash`).

        Returns:
            How many results were written.

        Raises:
            ValueError: a result is malformed; nothing is written then.
            UnknownJob: there is no such job.
        """
        # A url twice in one statement cannot be upserted: the last one counts.
        results: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
        for page, result in batch:
            url = _result_url(job_id, page, result)
            results[url] = (page, result)
        if not results:
            return 0
        rows = [result for _, result in results.values()]
        columns: dict[str, Any] = {
            "urls": _joined(results),
            "statuses": _joined(row["status"] for row in rows),
            "http": [row.get("http_status") for row in rows],
            "ms": [row.get("processing_time_ms") for row in rows],
            "errors": _joined(clean_message(row.get("error_message")) for row in rows),
            "skips": _joined(clean_message(row.get("skip_reason")) for row in rows),
            "hashes": _joined(row.get("content_hash") for row in rows),
        }
        with self._engine.begin() as connection:
            written = connection.execute(_INSERT_RESULTS, {"job_id": job_id, **columns}).rowcount
        if written == 0:
            raise UnknownJob(job_id)
        self.cache_results(job_id, [{**page, **result} for page, result in results.values()])
        return written

    def cache_results(self, job_id: str, results: Iterable[Mapping[str, Any]]) -> None:
        """Put results that Postgres already has into the cache, in one round trip."""
        if self.cache is None:
            return
        shortened = [_shortened(result) for result in results]
        values = []
        for start in range(0, len(shortened), _RESULTS_IN_A_VALUE):
            try:
                values.append(CRAWL_RESULTS.encode(shortened[start : start + _RESULTS_IN_A_VALUE]))
            except ValueTooLarge as error:
                logger.info("results of job %s are not cached: %s", job_id, error)
        if values:
            self.cache.rpush(CRAWL_RESULTS.key(job_id), *values)

    # --- status ---------------------------------------------------------------------------------------------

    def update_job_status(
        self,
        job_id: str,
        status: str,
        error_message: str | None = None,
        *,
        finish_reason: str | None = None,
        run_id: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Move a job to another status; the present one again changes nothing.

        Args:
            job_id: the job.
            status: where to.
            error_message: why, where there is something to say.
            finish_reason: one of `FINISH_REASONS`.
            run_id: of the Dagster run that has the job from now on.
            config: the checked plan, in place of what another program had queued the job with, or with a quota
                raised: that lets a job go on that the quota had completed.

        Raises:
            ValueError: there is no such status or finish reason.
            UnknownJob: there is no such job.
            InvalidJobTransition: the status cannot follow the present one.
        """
        if status not in STATUSES:
            msg = f"status {status!r} is unknown; a job is one of {', '.join(STATUSES)}"
            raise ValueError(msg)
        if finish_reason is not None and finish_reason not in FINISH_REASONS:
            msg = f"finish reason {finish_reason!r} is unknown; it is one of {', '.join(FINISH_REASONS)}"
            raise ValueError(msg)
        with self._engine.begin() as connection:
            row = connection.execute(
                text("SELECT status, finish_reason, config FROM scrape_jobs WHERE job_id = :job_id FOR UPDATE"),
                {"job_id": job_id},
            ).one_or_none()
            if row is None:
                raise UnknownJob(job_id)
            current = row.status
            if status != current and status not in TRANSITIONS[current]:
                reopens = (current, status) == ("completed", "running") and config is not None
                if not (reopens and may_reopen(row.finish_reason, row.config, config or {})):
                    raise InvalidJobTransition(job_id, current, status)
            connection.execute(
                text("""
                    UPDATE scrape_jobs SET status = :status,
                        error_message = coalesce(:error_message, error_message),
                        finish_reason = coalesce(:finish_reason, finish_reason),
                        run_id = coalesce(:run_id, run_id),
                        config = coalesce(CAST(:config AS jsonb), config)
                    WHERE job_id = :job_id
                """),
                {
                    "job_id": job_id,
                    "status": status,
                    "error_message": clean_message(error_message),
                    "finish_reason": finish_reason,
                    "run_id": run_id,
                    "config": None if config is None else to_json(dict(config)),
                },
            )
            job = self._read_job(connection, job_id)
        if job is None:
            raise UnknownJob(job_id)
        self._cache_job(job)
        return job

    def complete_job(self, job_id: str, finish_reason: str = "exhausted") -> dict[str, Any]:
        """The job is done."""
        return self.update_job_status(job_id, "completed", finish_reason=finish_reason)

    def fail_job(self, job_id: str, error_message: str, finish_reason: str = "error") -> dict[str, Any]:
        """The job could not be done, for this reason."""
        return self.update_job_status(job_id, "failed", error_message, finish_reason=finish_reason)

    # --- reading --------------------------------------------------------------------------------------------

    def get_job(self, job_id: str) -> dict[str, Any] | None:
        """The job, from the cache or else from Postgres (and then into the cache); None if there is none.

        A job that has not ended may be five seconds old, if another process changed it and could not reach Redis.
        """
        if self._read_through is None:
            return self.get_job_from_postgres(job_id)
        job = self._read_through.get_or_load(
            CRAWL_JOB.key(job_id), lambda: self.get_job_from_postgres(job_id), believed=_is_believed
        )
        return None if job is None else _from_cached_job(job)

    def get_job_from_postgres(self, job_id: str) -> dict[str, Any] | None:
        """The job as the source of truth has it at this moment."""
        with self._engine.connect() as connection:
            return self._read_job(connection, job_id)

    def list_jobs(
        self, *, customer: str | None = None, status: str | None = None, limit: int = 20
    ) -> list[dict[str, Any]]:
        """The newest jobs first, with their counters."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                text(f"""
                    SELECT {_JOB_COLUMNS}, coalesce(s.total_pages, 0) AS total_pages,
                           coalesce(s.successful_pages, 0) AS successful_pages,
                           coalesce(s.failed_pages, 0) AS failed_pages,
                           coalesce(s.skipped_pages, 0) AS skipped_pages
                    FROM scrape_jobs AS j JOIN customers AS c ON c.id = j.customer_id
                    LEFT JOIN scrape_job_stats AS s ON s.job_id = j.job_id
                    WHERE (CAST(:customer AS text) IS NULL OR c.slug = :customer)
                      AND (CAST(:status AS text) IS NULL OR j.status = :status)
                    ORDER BY j.created_at DESC, j.job_id LIMIT :limit
                """),  # noqa: S608 - the columns are a constant
                {"customer": customer, "status": status, "limit": limit},
            )
            return [dict(row) for row in rows.mappings()]

    def get_job_results(self, job_id: str) -> list[dict[str, Any]]:
        """The results that the cache still has (the first 10,000 of a job, for 24 hours)."""
        if self.cache is None:
            return []
        key = CRAWL_RESULTS.key(job_id)
        # A url whose result was written again counts once, with the last one.
        newest: dict[Any, dict[str, Any]] = {}
        start = 0
        # A few at a time: all of them can be more than a connection brings in the time that a call has.
        while batches := self.cache.lrange(key, start, start + _VALUES_AT_ONCE - 1):
            newest |= {result.get("url"): result for batch in batches for result in CRAWL_RESULTS.decode(batch)}
            start += len(batches)
        return list(newest.values())

    def get_job_results_from_postgres(
        self,
        job_id: str,
        *,
        after_url: str | None = None,
        limit: int = 500,
        status: str | None = None,
    ) -> list[dict[str, Any]]:
        """A page of the job's results in the order of their urls, however old.

        Args:
            job_id: the job.
            after_url: the last url of the page before; None for the first page.
            limit: rows, 1 to 10,000.
            status: only `success`, `failed` or `skipped`.

        Raises:
            ValueError: the limit or the status is out of range.
        """
        if not 1 <= limit <= 10_000:
            msg = f"limit must be between 1 and 10000, not {limit}"
            raise ValueError(msg)
        if status is not None and status not in RESULT_STATUSES:
            msg = f"result status {status!r} is unknown; it is one of {', '.join(RESULT_STATUSES)}"
            raise ValueError(msg)
        with self._engine.connect() as connection:
            rows = connection.execute(
                text(f"""
                    SELECT {_RESULT_COLUMNS} FROM scrape_job_results
                    WHERE job_id = :job_id AND url > :after
                      AND (CAST(:status AS text) IS NULL OR status = :status)
                    ORDER BY job_id, url LIMIT :limit
                """),  # noqa: S608 - the columns are a constant
                {"job_id": job_id, "after": after_url or "", "status": status, "limit": limit},
            )
            return [dict(row) for row in rows.mappings()]

    def get_job_stats(self, job_id: str) -> JobStats:
        """The job's counters: one row by its key; zeros before the first result."""
        with self._engine.connect() as connection:
            row = (
                connection.execute(
                    text("""
                        SELECT total_pages, successful_pages, failed_pages, skipped_pages,
                               avg_processing_time_ms, pages_per_second, total_bytes
                        FROM scrape_job_stats WHERE job_id = :job_id
                    """),
                    {"job_id": job_id},
                )
                .mappings()
                .one_or_none()
            )
        if row is None:
            return JobStats()
        rate, size = float(row["pages_per_second"] or 0.0), int(row["total_bytes"])
        return JobStats(**{**row, "pages_per_second": rate, "total_bytes": size})

    def count_waiting_urls(self, job_id: str, *, limit: int = 10_000) -> int:
        """How many urls of a job no worker has taken yet, counted up to a limit."""
        with self._engine.connect() as connection:
            return int(
                connection.scalar(
                    text("""
                        SELECT count(*) FROM (
                            SELECT 1 FROM crawl_frontier
                            WHERE job_id = :job_id AND worker_id IS NULL AND skip_reason IS NULL LIMIT :limit) AS w
                    """),
                    {"job_id": job_id, "limit": limit},
                )
                or 0
            )

    def count_by_reason(self, job_id: str) -> list[dict[str, Any]]:
        """How many urls ended how: status, reason (or HTTP status) and count, most first."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                text("""
                    SELECT status, coalesce(skip_reason, error_message, http_status::text, '') AS reason,
                           count(*) AS pages
                    FROM scrape_job_results WHERE job_id = :job_id
                    GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
                """),
                {"job_id": job_id},
            )
            return [dict(row) for row in rows.mappings()]

    # --- inside ---------------------------------------------------------------------------------------------

    @staticmethod
    def _read_job(connection: Connection, job_id: str) -> dict[str, Any] | None:
        row = (
            connection.execute(
                text(f"""
                    SELECT {_JOB_COLUMNS} FROM scrape_jobs AS j JOIN customers AS c ON c.id = j.customer_id
                    WHERE j.job_id = :job_id
                """),  # noqa: S608 - the columns are a constant
                {"job_id": job_id},
            )
            .mappings()
            .one_or_none()
        )
        return None if row is None else dict(row)

    def _insert_jobs(self, columns: Mapping[str, list[Any]]) -> list[str]:
        with self._engine.begin() as connection:
            return list(
                connection.scalars(
                    text("""
                        INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, config, metadata, run_id)
                        SELECT r.job_id, c.id, r.domain, r.job_type, CAST(r.config AS jsonb),
                               CAST(r.metadata AS jsonb), r.run_id
                        FROM unnest(CAST(:job_id AS text[]), CAST(:customer_id AS uuid[]), CAST(:domain AS text[]),
                                    CAST(:job_type AS text[]), CAST(:config AS text[]), CAST(:metadata AS text[]),
                                    CAST(:run_id AS text[]))
                                 AS r (job_id, customer_id, domain, job_type, config, metadata, run_id)
                        JOIN customers AS c ON c.id = r.customer_id
                        ORDER BY r.job_id
                        ON CONFLICT (job_id) DO NOTHING RETURNING job_id
                    """),
                    columns,
                )
            )

    def _cache_jobs(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        if self.cache is None:
            return
        batch = self.cache.pipeline()
        for job in jobs:
            key = CRAWL_JOB.key(job["job_id"])
            try:
                batch.set(key, CRAWL_JOB.encode(dict(job)))
            except ValueTooLarge:
                batch.delete(key)  # what stands there is older
        batch.execute()

    def _cache_job(self, job: Mapping[str, Any]) -> None:
        if self.cache is None:
            return
        key = CRAWL_JOB.key(job["job_id"])
        try:
            self.cache.set(key, CRAWL_JOB.encode(dict(job)))
        except ValueTooLarge:
            self.cache.delete(key)  # what stands there is older


def _job_row(job_id: str, data: Mapping[str, Any] | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A new job's columns, checked."""
    if metadata.get("job_id", job_id) != job_id:
        msg = f"metadata speaks of job {metadata['job_id']!r}, but the job is {job_id!r}"
        raise ValueError(msg)
    if not job_id or len(job_id.encode()) > 200 or "\x00" in job_id:
        msg = f"job id {job_id[:40]!r} cannot be used: it must have 1 to 200 bytes and no NUL"
        raise ValueError(msg)
    missing = [name for name in ("customer_id", "domain", "job_type") if not metadata.get(name)]
    if missing:
        msg = f"job {job_id} cannot be created: metadata lacks {', '.join(missing)}"
        raise ValueError(msg)
    if metadata["job_type"] not in JOB_TYPES:
        msg = f"job type {metadata['job_type']!r} is unknown; the types are {', '.join(JOB_TYPES)}"
        raise ValueError(msg)
    return {
        "job_id": job_id,
        "customer_id": str(metadata["customer_id"]),
        "domain": metadata["domain"],
        "job_type": metadata["job_type"],
        "config": to_json(dict(metadata.get("config") or {})),
        "metadata": to_json(dict(data or {})),
        "run_id": metadata.get("run_id"),
    }


def _is_believed(job: Any, age_seconds: float) -> bool:
    """Whether what is cached is taken as the job that it is."""
    if not isinstance(job, dict) or "customer_id" not in job or job.get("status") not in STATUSES:
        return False
    return job["status"] not in UNFINISHED or age_seconds < CHANGING_JOB_SECONDS


def _from_cached_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job in the very types that Postgres gives, whether it was cached or has just been loaded."""
    found = dict(job)
    for name in ("created_at", "started_at", "completed_at"):
        if isinstance(found.get(name), str):
            found[name] = datetime.fromisoformat(found[name])
    found["customer_id"] = UUID(str(found["customer_id"]))
    return found


# ASCII's own separators, for lists of texts: the driver writes an array by quoting each element in Python; joined
# here and split by Postgres they cost less, and a batch of 500 results a sixth less.
_SEPARATOR, _NULL = "\x1f", "\x1e"


def _joined(values: Iterable[str | None]) -> str:
    """Texts as one text, to be taken apart by `string_to_array(…, chr(31), chr(30))`.

    Separators in them become spaces.
    """
    texts = list(values)
    joined = _SEPARATOR.join([_NULL if text is None else text for text in texts])
    if joined.count(_SEPARATOR) >= len(texts) or joined.count(_NULL) > texts.count(None):
        joined = _SEPARATOR.join([_NULL if text is None else text.translate(_UNSTORABLE) for text in texts])
    return joined


def _shortened(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """A result as the cache keeps it: of a long text its beginning."""
    content = result.get("text")
    if isinstance(content, str) and len(content) > MAX_CACHED_TEXT:
        return {**result, "text": content[:MAX_CACHED_TEXT]}
    return result


def _result_url(job_id: str, page: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Check a result and return its url."""
    url = result.get("url") or page.get("url")
    if not isinstance(url, str) or not url:
        msg = f"a result of job {job_id} has no url"
        raise ValueError(msg)
    if len(url.encode("utf-8", "replace")) > 2048 or not url.isprintable():
        msg = (
            f"a result of job {job_id} has a url that cannot be kept (2048 bytes at most, no NUL or other control "
            f"characters): {url[:80]!r}"
        )
        raise ValueError(msg)
    status = result.get("status")
    if status not in RESULT_STATUSES:
        msg = f"the result of {url} has status {status!r}; it is one of {', '.join(RESULT_STATUSES)}"
        raise ValueError(msg)
    ms = result.get("processing_time_ms")
    if ms is not None and (not math.isfinite(ms) or ms < 0):
        msg = f"the result of {url} took {ms} ms: a time cannot be negative"
        raise ValueError(msg)
    return url
