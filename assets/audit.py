"""Assets of the group `audit`: what was fetched, when, with what outcome. Written by the job `crawl`."""

from __future__ import annotations

from assets.row_counts import TableAsset

AUDIT_TABLES = (
    TableAsset(
        "scrape_jobs",
        "One row for each crawl, from its creation to its end: who, what, when, how it finished.",
        "SELECT count(*) FROM scrape_jobs WHERE customer_id = :customer_id",
        "the customer",
    ),
    TableAsset(
        "scrape_job_results",
        "One row for each url of a job, with its outcome and, where it was left out, the reason.",
        # Kept by the trigger, so a job of a million results is not counted again.
        "SELECT total_pages FROM scrape_job_stats WHERE job_id = :job_id",
        "the job",
    ),
    TableAsset(
        "scrape_job_stats",
        "Counters of each job, kept by a trigger: reading them never counts rows.",
        "SELECT count(*) FROM scrape_job_stats WHERE customer_id = :customer_id",
        "the customer",
    ),
)
