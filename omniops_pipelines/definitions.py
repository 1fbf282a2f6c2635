"""Everything that Dagster loads, named in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.specs import asset_specs
from omniops_pipelines.jobs.crawl import JobRecord, crawl_job
from resources.postgres.resource import PostgresResource

if TYPE_CHECKING:
    from collections.abc import Mapping


def build_defs(resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The project's definitions; tests and tools may put other resources in."""
    given = dict(resources or {})
    postgres = given.setdefault("postgres", PostgresResource())
    return dg.Definitions(
        assets=asset_specs(),
        jobs=[crawl_job],
        resources={"job_record": JobRecord(postgres=postgres), **given},
    )


defs = build_defs()
