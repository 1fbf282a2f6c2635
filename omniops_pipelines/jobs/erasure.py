"""The job `erase_customer`: everything of a customer goes, in every tier, with proof.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the ops' own.
"""

from dataclasses import replace
from typing import Any

import dagster as dg
from pydantic import Field

from omniops_pipelines.run_metadata import table
from resources import stack
from resources.crawler.crawl_order import RefusedOrder, check_database
from resources.postgres.connection import DatabaseError
from resources.postgres.customer_rows import UnknownCustomer
from resources.postgres.customers import InvalidSlug, check_slug
from resources.postgres.erasure import ErasureRefused, erase_customer, preview_erasure
from resources.postgres.resource import PostgresResource
from resources.redis import RedisWithFallback
from resources.services import ServiceError
from resources.settings import Settings


class ErasureConfig(dg.Config):
    """Whom to erase."""

    customer: str = Field(description="Slug of the customer. The only required field.")
    confirm: str = Field(
        default="", description="The slug once more, typed by hand, where dry_run is off: there is no way back."
    )
    dry_run: bool = Field(default=True, description="Look only: count what would go, table by table.")


@dg.op(description="Erases everything of a customer, in batches; the proof is an entry of gdpr_audit_log.")
def erase_everything(
    context: dg.OpExecutionContext, config: ErasureConfig, postgres: PostgresResource
) -> dict[str, Any]:
    """Refuse what is not meant, then erase; a run that was killed is finished by the next one."""
    slug = config.customer
    try:
        check_slug(slug)
        if not config.dry_run and config.confirm != slug:
            msg = f"erasing {slug} cannot be undone: repeat its slug in `confirm`, or look first with `dry_run`"
            raise ErasureRefused("not confirmed", msg)
        check_database(postgres.endpoints().database_url)
        if config.dry_run:
            return _preview(context, postgres, slug)
        result = erase_customer(postgres.engine(), slug, cache=_cache(postgres))
    except (InvalidSlug, UnknownCustomer, ErasureRefused, DatabaseError, ServiceError, RefusedOrder) as error:
        # LookupError's str() would quote the message.
        raise dg.Failure(description=str(error.args[0]), allow_retries=False) from error
    if result.already_done:
        context.log.info(f"the erasure was completed before: nothing is left of customer id {result.customer_id}")
    if not result.cache_reached:
        context.log.warning("Redis is away: what it holds of the customer's crawls expires within 24 hours")
    rows = [{"table": name, "rows": count} for name, count in result.rows.items()]
    context.add_output_metadata({
        "dry_run": False,
        "rows": sum(result.rows.values()),
        "by table": table({"table": "string", "rows": "int"}, rows),
        "proof: entry of gdpr_audit_log": result.entry,
        "customer id": str(result.customer_id),
        "already done": result.already_done,
        "completed": dg.MetadataValue.timestamp(result.completed_at),
        "redis reached": result.cache_reached,
    })  # fmt: skip
    return {"entry": result.entry, "customer_id": str(result.customer_id), "rows": result.rows}


def _cache(postgres: PostgresResource) -> RedisWithFallback:
    """The ephemeral tier beside this database."""
    settings = Settings.from_environment()
    return stack.cache(replace(settings, database_url=postgres.database_url or settings.database_url))


def _preview(context: dg.OpExecutionContext, postgres: PostgresResource, slug: str) -> dict[str, Any]:
    found = preview_erasure(postgres.engine(), slug)
    total = sum(row.rows for row in found)
    context.log.info(
        f"{total:,} rows would be erased; to erase them, turn dry_run off and repeat the slug in `confirm`"
    )
    context.add_output_metadata({
        "dry_run": True,
        "rows": total,
        "bytes": sum(row.bytes for row in found),
        "by table": table({"table": "string", "rows": "int", "bytes": "int"}, [row.as_dict() for row in found]),
    })  # fmt: skip
    return {"entry": None, "rows": {row.table: row.rows for row in found}}


@dg.job(
    name="erase_customer",
    description="Erases everything of a customer, in every tier, for good, and leaves a proof that names nobody. In "
    "the Launchpad it only looks. A legal hold or a crawl under way refuses it.",
    executor_def=dg.in_process_executor,
)
def erase_customer_job() -> None:
    """Right to erasure."""
    erase_everything()
