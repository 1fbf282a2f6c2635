"""Everything that Dagster loads, named in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.checks import CHECKS
from assets.embeddings import EMBEDDING_ASSETS
from assets.health import HEALTH_ASSETS
from assets.performance import PERFORMANCE_ASSETS
from assets.retention import RETENTION_ASSETS
from assets.specs import asset_specs
from assets.statistics import STATISTICS_ASSETS, STATISTICS_CHECKS
from omniops_pipelines.jobs.content import cleanup_page_html_job, reprocess_job
from omniops_pipelines.jobs.control import control_crawl
from omniops_pipelines.jobs.crawl import crawl_job
from omniops_pipelines.jobs.embeddings import embeddings
from omniops_pipelines.jobs.erasure import erase_customer_job
from omniops_pipelines.jobs.job_record import JobRecord
from omniops_pipelines.jobs.maintenance import purge_runs
from omniops_pipelines.jobs.refresh import refresh
from omniops_pipelines.jobs.reports import reports
from omniops_pipelines.jobs.retention import RETENTION_JOBS
from omniops_pipelines.jobs.statistics import statistics_daily, statistics_job
from omniops_pipelines.schedules import REPORTS_WEEKLY, make_schedule, schedules
from resources.postgres.resource import PostgresResource
from resources.redis.resource import RedisResource
from sensors import SENSORS

if TYPE_CHECKING:
    from collections.abc import Mapping


def build_defs(resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The project's definitions; tests and tools may put other resources in."""
    given = dict(resources or {})
    postgres = given.setdefault("postgres", PostgresResource())
    given.setdefault("redis", RedisResource())
    return dg.Definitions(
        assets=[
            *asset_specs(),
            *RETENTION_ASSETS,
            *HEALTH_ASSETS,
            *STATISTICS_ASSETS,
            *PERFORMANCE_ASSETS,
            *EMBEDDING_ASSETS,
        ],
        asset_checks=[*CHECKS, *STATISTICS_CHECKS],
        jobs=[
            crawl_job,
            control_crawl,
            refresh,
            reprocess_job,
            *RETENTION_JOBS,
            cleanup_page_html_job,
            statistics_job,
            reports,
            embeddings,
            erase_customer_job,
            purge_runs,
        ],
        schedules=[statistics_daily, *schedules(), make_schedule(REPORTS_WEEKLY)],
        sensors=SENSORS,
        resources={"job_record": JobRecord(database_url=postgres.database_url), **given},
    )


defs = build_defs()
