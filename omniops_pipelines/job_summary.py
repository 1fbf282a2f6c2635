"""A job's figures: what the command line prints and the run's page shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resources.postgres.jobs import PersistentJobManager


def summarise(manager: PersistentJobManager, job_id: str, run_id: str | None) -> dict[str, Any]:
    """The figures of a job, read from Postgres.

    Args:
        manager: the audit trail.
        job_id: the job.
        run_id: of the Dagster run that asks, where there is one.
    """
    job = manager.get_job_from_postgres(job_id)
    stats = manager.get_job_stats(job_id)
    return {
        "job_id": job_id,
        "run_id": run_id,
        "status": job["status"] if job else None,
        "finish_reason": job["finish_reason"] if job else None,
        "error_message": job["error_message"] if job else None,
        "total_pages": stats.total_pages,
        "successful_pages": stats.successful_pages,
        "failed_pages": stats.failed_pages,
        "skipped_pages": stats.skipped_pages,
        "pages_per_second": stats.pages_per_second,
        "seconds": round(float(job["active_seconds"] or 0.0), 3) if job else 0.0,
    }
