"""Statistics by domain and status, retention at another moment, alerts and their deliveries.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from resources.postgres.migrations import run_functions, run_sql_file

revision = "0003"
down_revision: str | None = "0002"
branch_labels = None
depends_on = None

_EARLIER_PREDICATES = (
    "retention_cutoff",
    "expired_scrape_jobs",
    "expired_messages",
    "expired_conversations",
    "expired_conversation_funnel",
    "expired_alert_history",
    "expired_daily_job_stats",
    "expired_daily_domain_stats",
    "expired_storage_snapshots",
    "compute_daily_statistics",
)


def upgrade() -> None:
    """Add columns, tables of the platform's own, and functions; replace those that know more now."""
    run_sql_file("0003_statistics_and_alerts_tables.sql")
    run_sql_file("0003_statistics_and_alerts_functions.sql")


def downgrade() -> None:
    """Drop what was added, and bring back the functions of the revisions before."""
    run_sql_file("0003_statistics_and_alerts_down.sql")
    run_functions("0001_crawl_functions.sql", ("crawl_commit_batch",))
    run_functions("0002_permanent_tier_functions.sql", _EARLIER_PREDICATES)
