"""What a job has discovered beside the pages that it fetched: urls that sitemaps list, and what was left out.

A job's sitemaps are read by one of its workers, once: `claim_sitemaps` says whose turn it is, and a reader that died
is replaced. What was left out and has a row in the frontier is counted there; the rest is added up in the job's row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Engine

    from resources.postgres.frontier import FrontierUrl

__all__ = ["Discovery", "read_discovery"]


@dataclass(frozen=True, slots=True)
class Discovery:
    """One job's.

    Attributes:
        engine: the permanent tier.
        job_id: the job.
        customer_id: whose job it is.
    """

    engine: Engine
    job_id: str
    customer_id: UUID | str

    def claim_sitemaps(self, worker: int) -> str:
        """Ask to read the job's sitemaps.

        Returns:
            `mine`: this worker reads them; `taken`: another live worker does; `read`: they have been read.
        """
        with self.engine.begin() as connection:
            claimed = connection.scalar(
                text("""
                    UPDATE scrape_jobs AS j
                    SET discovery = jsonb_set(
                        j.discovery, '{sitemaps}', jsonb_build_object('reader', CAST(:worker AS bigint)))
                    WHERE j.job_id = :job_id AND j.discovery #> '{sitemaps,files}' IS NULL
                      AND NOT EXISTS (
                          SELECT 1 FROM omniops_meta.crawl_workers AS w
                          WHERE w.job_id = j.job_id AND w.worker_id <> :worker
                            AND w.worker_id = CAST(j.discovery #>> '{sitemaps,reader}' AS bigint)
                            AND w.leased_until > clock_timestamp())
                    RETURNING true
                """),
                {"job_id": self.job_id, "worker": worker},
            )
            if claimed:
                return "mine"
            read = connection.scalar(
                text("SELECT discovery #> '{sitemaps,files}' IS NOT NULL FROM scrape_jobs WHERE job_id = :job_id"),
                {"job_id": self.job_id},
            )
        return "taken" if read is False else "read"

    def finish_sitemaps(self, report: Mapping[str, Any]) -> None:
        """Keep what became of the job's sitemaps: they are not read again."""
        with self.engine.begin() as connection:
            connection.execute(
                text("""
                    UPDATE scrape_jobs SET discovery = jsonb_set(discovery, '{sitemaps}', CAST(:report AS jsonb))
                    WHERE job_id = :job_id
                """),
                {"job_id": self.job_id, "report": json.dumps(dict(report))},
            )

    def enter(self, urls: Sequence[FrontierUrl], skip_reasons: Sequence[str | None]) -> int:
        """Enter urls that sitemaps list, those not to be followed with their reason; returns how many were new.

        One that a link's depth or a trap kept out is let in, since the site's owner names it.
        """
        with self.engine.begin() as connection:
            return connection.execute(
                text("""
                    INSERT INTO crawl_frontier AS f
                        (job_id, url_hash, customer_id, url, depth, found_by, lastmod, skip_reason)
                    SELECT DISTINCT ON (s.hash)
                           :job_id, s.hash, CAST(:customer_id AS uuid), s.url, s.depth, s.found_by, s.lastmod, s.skip
                    FROM unnest(CAST(:hashes AS bigint[]), CAST(:urls AS text[]), CAST(:depths AS integer[]),
                                CAST(:found_by AS text[]), CAST(:lastmod AS timestamptz[]), CAST(:skips AS text[]))
                             AS s (hash, url, depth, found_by, lastmod, skip)
                    ORDER BY s.hash, s.lastmod DESC NULLS LAST
                    ON CONFLICT (job_id, url_hash) DO UPDATE SET
                        found_by = CASE WHEN f.found_by = 'known' THEN EXCLUDED.found_by ELSE f.found_by END,
                        lastmod = coalesce(EXCLUDED.lastmod, f.lastmod),
                        depth = CASE WHEN f.skip_reason IS NULL THEN f.depth ELSE EXCLUDED.depth END,
                        skip_reason = NULL
                    WHERE EXCLUDED.skip_reason IS NULL
                      AND (f.found_by = 'known'
                           OR (NOT f.done AND f.skip_reason IS DISTINCT FROM 'excluded'
                               AND (f.skip_reason IS NOT NULL OR EXCLUDED.lastmod IS NOT NULL)))
                """),
                {
                    "job_id": self.job_id,
                    "customer_id": str(self.customer_id),
                    "hashes": [u.hash for u in urls],
                    "urls": [u.url for u in urls],
                    "depths": [u.depth for u in urls],
                    "found_by": [u.found_by for u in urls],
                    "lastmod": [u.lastmod for u in urls],
                    "skips": list(skip_reasons),
                },
            ).rowcount

    def add_not_followed(self, counts: Mapping[str, int]) -> None:
        """Add to the counts of urls that were left out and have no row in the frontier."""
        with self.engine.begin() as connection:
            connection.execute(
                text("""
                    UPDATE scrape_jobs AS j SET discovery = jsonb_set(j.discovery, '{not_followed}', (
                        SELECT coalesce(jsonb_object_agg(s.reason, s.urls), '{}')
                        FROM (SELECT p.reason, sum(p.urls) AS urls
                              FROM (SELECT key, CAST(value AS bigint)
                                    FROM jsonb_each_text(coalesce(j.discovery -> 'not_followed', '{}'))
                                    UNION ALL
                                    SELECT key, CAST(value AS bigint) FROM jsonb_each_text(CAST(:counts AS jsonb)))
                                       AS p (reason, urls)
                              GROUP BY p.reason) AS s))
                    WHERE j.job_id = :job_id
                """),
                {"job_id": self.job_id, "counts": json.dumps(dict(counts))},
            )


def read_discovery(engine: Engine, job_id: str) -> dict[str, Any]:
    """What a job has discovered beside its results.

    Returns:
        `not_followed`: how many urls were met and not fetched, by reason; `waiting` are those that a limit of the job
        (or a pause) left. `sitemaps`: what became of them: `files`, `urls`, `problems`; None if none were to be read,
        or they have not been read yet. `robots.txt` and what was learnt by fetching are in the job's results.
    """
    with engine.connect() as connection:
        kept = connection.scalar(text("SELECT discovery FROM scrape_jobs WHERE job_id = :job_id"), {"job_id": job_id})
        rows = connection.execute(
            text("""
                SELECT skip_reason, count(*) FROM crawl_frontier
                WHERE job_id = :job_id AND skip_reason IS NOT NULL GROUP BY skip_reason
                UNION ALL
                SELECT 'waiting', count(*) FROM crawl_frontier
                WHERE job_id = :job_id AND worker_id IS NULL AND skip_reason IS NULL HAVING count(*) > 0
            """),
            {"job_id": job_id},
        ).all()
    kept = kept or {}
    counts: dict[str, int] = dict(kept.get("not_followed") or {})
    for reason, count in rows:
        counts[reason] = counts.get(reason, 0) + count
    sitemaps = kept.get("sitemaps")
    return {
        "not_followed": {reason: count for reason, count in sorted(counts.items()) if count > 0},
        "sitemaps": sitemaps if sitemaps and "files" in sitemaps else None,
    }
