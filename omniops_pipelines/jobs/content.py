"""The jobs about kept HTML: `reprocess` reads it again, without a request; `cleanup_page_html` removes what is old.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the ops' own.
"""

from typing import Any

import dagster as dg
from pydantic import Field

from resources.content.reprocess import Reprocessed, reprocess
from resources.crawler.crawl_order import RefusedOrder, check_database
from resources.postgres.connection import DatabaseError
from resources.postgres.customer_rows import UnknownCustomer, customer_id_of
from resources.postgres.customers import InvalidSlug
from resources.postgres.page_html import count_expired_html, remove_expired_html
from resources.postgres.resource import PostgresResource
from resources.services import ServiceError


class ReprocessConfig(dg.Config):
    """Which pages are read again."""

    customer: str = Field(description="Slug of the customer whose pages are read again. The only required field.")
    domain: str = Field(default="", description="One site's pages alone, for example docs.example.com. Empty: all.")
    dry_run: bool = Field(
        default=True, description="Look only: count the pages of which something would come out otherwise."
    )


@dg.op(description="Reads pages whose HTML is kept, and writes what comes out otherwise (text, facts). No requests.")
def read_kept_pages(
    context: dg.OpExecutionContext, config: ReprocessConfig, postgres: PostgresResource
) -> dict[str, Any]:
    """Batch by batch, each a transaction: a run that is cancelled has done what it has done."""
    try:
        check_database(postgres.endpoints().database_url)
        with postgres.engine().connect() as connection:
            customer_id = customer_id_of(connection, config.customer)
    except (InvalidSlug, UnknownCustomer, DatabaseError, ServiceError, RefusedOrder) as error:
        raise dg.Failure(description=str(error.args[0]), allow_retries=False) from error

    said = 0

    def tell(so_far: Reprocessed) -> None:
        nonlocal said
        if so_far.read - said >= 1_000:
            said = so_far.read
            context.log.info(f"{so_far.read:,} pages read, {so_far.changed:,} came out otherwise")

    result = reprocess(
        postgres.engine(),
        customer_id,
        domain=config.domain or None,
        dry_run=config.dry_run,
        cache=postgres.job_manager().cache,
        on_batch=tell,
    )
    if not result.read:
        context.log.info("no HTML is kept of these pages: see keep_html_days in the customer's settings")
    context.add_output_metadata({"dry_run": config.dry_run, **result.as_dict()})
    return {"dry_run": config.dry_run, **result.as_dict()}


class PageHtmlConfig(dg.Config):
    """Whether anything is removed."""

    dry_run: bool = Field(default=True, description="Look only: count what has expired. Turn it off to remove.")


@dg.op(description="Removes HTML that was kept as long as its customer asked for.")
def remove_expired_page_html(
    context: dg.OpExecutionContext, config: PageHtmlConfig, postgres: PostgresResource
) -> int:
    """In bounded transactions."""
    try:
        check_database(postgres.endpoints().database_url)
        engine = postgres.engine()
        removed = count_expired_html(engine) if config.dry_run else remove_expired_html(engine)
    except (DatabaseError, ServiceError, RefusedOrder) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    context.add_output_metadata({"dry_run": config.dry_run, "pages": removed})
    return removed


@dg.job(
    name="reprocess",
    description="Reads pages whose HTML is kept once more, with today's extractor and without a request. In the "
    "Launchpad it only looks; turn dry_run off to write.",
    executor_def=dg.in_process_executor,
)
def reprocess_job() -> None:
    """A better extractor, run over what was crawled."""
    read_kept_pages()


@dg.job(
    name="cleanup_page_html",
    description="Removes HTML that was kept as long as its customer's configuration says (keep_html_days). "
    "In the Launchpad it only looks; turn dry_run off to remove.",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_retries": "2"},
)
def cleanup_page_html_job() -> None:
    """Every night."""
    remove_expired_page_html()
