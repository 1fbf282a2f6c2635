"""All asset specs, with what they have in common put on in one place.

The tables come from the data catalogue. Most are external assets: other services or the job `crawl` write them, and
they stand here so that lineage shows the whole strategy. The few that an asset of this project computes take their
spec from `table_spec` too, and are named in `MATERIALISED`, so that none is there twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import dagster as dg
from sqlalchemy.dialects import postgresql

from assets.audit import AUDIT_TABLES
from assets.code_links import code_link
from assets.columns import describe
from assets.content import CONTENT_TABLES
from resources.postgres.catalogue import TABLES
from resources.postgres.models import metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from resources.postgres.catalogue import TableEntry

_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]

WEBSITE: Final = "website"
POSTGRES_STATISTICS: Final = "postgres_statistics"

# Tables that an asset definition of this project computes; every other table is an external asset.
MATERIALISED: Final = frozenset({"storage_snapshots", "daily_job_stats", "daily_domain_stats", "page_embeddings"})

# Groups of the tables that jobs write; the others keep their catalogue group.
_GROUPS = {
    **{table.name: "content" for table in CONTENT_TABLES},
    **{table.name: "audit" for table in AUDIT_TABLES},
    "daily_job_stats": "statistics",
    "daily_domain_stats": "statistics",
    "storage_snapshots": "health",
}

# What a table is made from where its foreign keys do not say it.
_MADE_FROM = {
    "scraped_pages": (WEBSITE, "scrape_jobs"),
    "scrape_job_results": (WEBSITE,),
    "scrape_job_stats": ("scrape_job_results",),
    "scrape_jobs": ("customer_configs",),
    "crawl_frontier": (WEBSITE,),
    "daily_job_stats": ("scrape_job_results", "scrape_jobs"),
    "daily_domain_stats": ("scrape_job_results", "scrape_jobs"),
    "page_embeddings": ("website_content",),
    "message_queue": ("conversations",),
    "conversation_funnel": ("conversations",),
    # One arrow for each policy: from the table whose rows decide.
    "retention_runs": ("message_queue", "scrape_jobs", "conversations", "daily_job_stats"),
    "gdpr_audit_log": ("customers", "legal_holds"),
    "alert_history": ("storage_snapshots", "retention_runs"),
    "storage_snapshots": (POSTGRES_STATISTICS,),
}

# Postgres keeps statistics of every table; these are the ones that make its size. Thirty arrows would say nothing.
_LARGE_TABLES = ("scrape_job_results", "website_content", "page_embeddings", "messages")


def _upstream(name: str) -> list[str]:
    """What a table is made from: its parents by foreign key, and what `_MADE_FROM` adds."""
    parents = {key.column.table.name for key in metadata.tables[name].foreign_keys}
    made_from = _MADE_FROM.get(name, ())
    # The customer is everybody's parent; an arrow from it says something only where no other parent leads back to it.
    others = parents - {"customers"}
    if made_from or any(TABLES[parent].tenant_column is not None for parent in others):
        parents = others
    return sorted({*parents, *made_from} - {name})


def table_spec(
    name: str,
    *,
    partitions_def: dg.PartitionsDefinition[str] | None = None,
    freshness_policy: dg.FreshnessPolicy | None = None,
    extra_metadata: dict[str, Any] | None = None,
) -> dg.AssetSpec:
    """The spec of a table of the catalogue, for an external asset or for the definition that computes it.

    Args:
        name: of the table.
        partitions_def: where it is computed by partition.
        freshness_policy: where it is kept fresh.
        extra_metadata: beside what every table has.
    """
    entry = TABLES[name]
    return dg.AssetSpec(
        key=name,
        description=entry.description,
        group_name=_GROUPS.get(name, entry.group),
        owners=[f"team:{entry.owner}"],
        kinds={"postgres", "table"},
        tags={"omniops/tier": entry.tier, "omniops/retention": entry.policy},
        deps=_upstream(name),
        partitions_def=partitions_def,
        freshness_policy=freshness_policy,
        metadata={
            "dagster/table_name": f"public.{name}",
            "dagster/column_schema": dg.TableSchema(columns=list(_columns(entry))),
            "kept": entry.retention.keeps,
            "removed_by": entry.retention.removes,
            **code_link(metadata.tables[name]),
            **(extra_metadata or {}),
        },
    )


def _columns(entry: TableEntry) -> Iterator[dg.TableColumn]:
    for column in metadata.tables[entry.name].columns:
        yield dg.TableColumn(
            column.name,
            type=column.type.compile(dialect=_DIALECT).lower(),
            description=describe(column),
            constraints=dg.TableColumnConstraints(nullable=bool(column.nullable), unique=bool(column.unique)),
        )


def report_spec(
    name: str,
    description: str,
    *,
    group: str,
    deps: Iterable[str],
    code: Callable[..., Any],
    freshness_policy: dg.FreshnessPolicy | None = None,
) -> dg.AssetSpec:
    """The spec of a report: a page for people, made from tables, which nothing is computed from.

    Args:
        name: of the asset and of its file.
        description: what it tells, and to whom.
        group: as lineage shows it.
        deps: what it is made from.
        code: the function that makes it.
        freshness_policy: where it is kept fresh.
    """
    return dg.AssetSpec(
        key=name,
        description=description,
        group_name=group,
        owners=["team:pipelines"],
        kinds={"report", "html"},
        tags={"omniops/tier": "report"},
        deps=sorted(deps),
        freshness_policy=freshness_policy,
        metadata=code_link(code),
    )


def asset_specs() -> Sequence[dg.AssetSpec]:
    """The external assets: where data comes from, and every table that no asset of this project computes."""
    return [
        dg.AssetSpec(
            key=WEBSITE,
            description="The customers' own websites, as they stand on the web. The source of everything here.",
            group_name="sources",
            owners=["team:pipelines"],
            kinds={"website"},
        ),
        dg.AssetSpec(
            key=POSTGRES_STATISTICS,
            description="What Postgres itself knows of every table and query: sizes, estimates, dead rows, times.",
            group_name="database",
            owners=["team:pipelines"],
            kinds={"postgres"},
            deps=sorted(_LARGE_TABLES),
        ),
        *(table_spec(name) for name in TABLES if name not in MATERIALISED),
    ]
