"""All asset specs, with what they have in common put on in one place.

The tables come from the data catalogue: those that this project's jobs write are in groups of their own, every other
table is an external asset, so that lineage shows the whole strategy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from assets.audit import AUDIT_TABLES
from assets.content import CONTENT_TABLES
from resources.postgres.catalogue import TABLES
from resources.postgres.models import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from resources.postgres.catalogue import TableEntry

WEBSITE = "website"

# Groups of the tables that jobs write; the others keep their catalogue group.
_GROUPS = {
    **{table.name: "content" for table in CONTENT_TABLES},
    **{table.name: "audit" for table in AUDIT_TABLES},
}

# Data that comes from elsewhere than a foreign key says.
_MADE_FROM = {
    "scraped_pages": (WEBSITE, "scrape_jobs"),
    "scrape_job_results": (WEBSITE,),
    "scrape_job_stats": ("scrape_job_results",),
    "scrape_jobs": ("customer_configs",),
    "crawl_frontier": (WEBSITE,),
    "daily_job_stats": ("scrape_job_results", "scrape_jobs"),
    "daily_domain_stats": ("scrape_job_results", "scrape_jobs"),
    "message_queue": ("conversations",),
}


def _upstream(name: str) -> list[str]:
    """What a table is made from: its parents by foreign key, and what `_MADE_FROM` adds."""
    parents = {key.column.table.name for key in metadata.tables[name].foreign_keys}
    made_from = _MADE_FROM.get(name, ())
    # The customer is everybody's parent; an arrow from it says something only where no other parent leads back to it.
    others = parents - {"customers"}
    if made_from or any(TABLES[parent].tenant_column is not None for parent in others):
        parents = others
    return sorted({*parents, *made_from} - {name})


def _spec(entry: TableEntry) -> dg.AssetSpec:
    return dg.AssetSpec(
        key=entry.name,
        description=entry.description,
        group_name=_GROUPS.get(entry.name, entry.group),
        owners=[f"team:{entry.owner}"],
        kinds={"postgres", "table"},
        tags={"omniops/tier": entry.tier, "omniops/retention": entry.policy},
        deps=_upstream(entry.name),
        metadata={
            "dagster/table_name": f"public.{entry.name}",
            "dagster/column_schema": dg.TableSchema(columns=list(_columns(entry))),
            "kept": entry.retention.keeps,
            "removed_by": entry.retention.removes,
        },
    )


def _columns(entry: TableEntry) -> Iterator[dg.TableColumn]:
    for column in metadata.tables[entry.name].columns:
        yield dg.TableColumn(
            column.name,
            type=str(column.type).lower(),
            description=column.comment,
            constraints=dg.TableColumnConstraints(nullable=bool(column.nullable), unique=bool(column.unique)),
        )


def asset_specs() -> Sequence[dg.AssetSpec]:
    """Every asset of the platform. The tables are written by jobs, so the specs carry no computation."""
    return [
        dg.AssetSpec(
            key=WEBSITE,
            description="The customers' own websites, as they stand on the web. The source of everything here.",
            group_name="sources",
            kinds={"website"},
        ),
        *(_spec(entry) for entry in TABLES.values()),
    ]
