"""Quotas: a job's bytes are counted, and a job that a quota ended goes on when the quota is raised.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import op

from resources.postgres.migrations import run_functions, run_sql_file

revision = "0006"
down_revision: str | None = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the counter, and make again the functions that know of it."""
    run_sql_file("0006_quotas.sql")


def downgrade() -> None:
    """Drop the counter, and bring back the functions of the first revision."""
    run_sql_file("0006_quotas_down.sql")
    run_functions("0001_crawl_functions.sql", ("scrape_job_stats_apply",))
    triggers = ("scrape_job_results_counted", "scrape_jobs_before_update")
    run_functions("0001_crawl_functions.sql", triggers, replace=True)
    op.execute("DROP FUNCTION public.scrape_job_may_reopen")
