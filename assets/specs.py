"""All asset specs, with what they have in common put on in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from assets.audit import AUDIT_TABLES
from assets.content import CONTENT_TABLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assets.row_counts import TableAsset

OWNER = "team:data-platform"

# What each table is made from, so that lineage reads from the website to the reports.
_UPSTREAM = {
    "scrape_jobs": ("customer_configs",),
    "scraped_pages": ("website", "scrape_jobs"),
    "website_content": ("scraped_pages",),
    "scrape_job_results": ("website", "scrape_jobs"),
    "scrape_job_stats": ("scrape_job_results",),
}


def _spec(table: TableAsset, group: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        key=table.name,
        description=table.description,
        group_name=group,
        owners=[OWNER],
        kinds={"postgres", "table"},
        deps=list(_UPSTREAM[table.name]),
        metadata={"dagster/table_name": f"public.{table.name}"},
    )


def asset_specs() -> Sequence[dg.AssetSpec]:
    """Every asset of the platform. The tables are written by jobs, so the specs carry no computation."""
    return [
        dg.AssetSpec(
            key="website",
            description="The customers' own websites, as they stand on the web. The source of everything here.",
            group_name="sources",
            kinds={"website"},
        ),
        dg.AssetSpec(
            key="customer_configs",
            description="How each website of a customer is to be crawled. Written by other services.",
            group_name="tenants",
            owners=[OWNER],
            kinds={"postgres", "table"},
            metadata={"dagster/table_name": "public.customer_configs"},
        ),
        *(_spec(table, "content") for table in CONTENT_TABLES),
        *(_spec(table, "audit") for table in AUDIT_TABLES),
    ]
