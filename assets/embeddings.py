"""The asset `page_embeddings`: embeds what is missing, of all customers; a crawl with `embed` does its own.

No `from __future__ import annotations`: Dagster reads the annotations of assets.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import dagster as dg
from pydantic import Field

from assets.html import Table, as_markdown_table
from assets.plots import Series, as_markdown, bars
from assets.publish import snapshot
from assets.specs import table_spec
from resources.content.embed import EmbedProgress, embed_missing, in_a_thread, usable_provider
from resources.content.embeddings import EmbeddingError, provider_from_settings
from resources.crawler.crawl_order import RefusedOrder, check_database
from resources.postgres import embeddings as store
from resources.postgres.connection import DatabaseError
from resources.postgres.customer_rows import UnknownCustomer, customer_id_of
from resources.postgres.customers import InvalidSlug
from resources.postgres.embeddings import CustomerEmbeddings
from resources.postgres.resource import PostgresResource
from resources.postgres.tenancy import service_connection
from resources.services import ServiceError
from resources.settings import InvalidSetting

# Made each night.
_FRESH: Final = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=50), warn_window=timedelta(hours=26))
_REPORT_SECONDS: Final = 30.0
_TABLE_CUSTOMERS: Final = 50
_PLOTTED_CUSTOMERS: Final = 12
_MAX_PAGES: Final = 100_000_000


class EmbeddingsConfig(dg.Config):
    """Which pages are embedded."""

    customer: str = Field(default="", description="Slug: only this customer's pages. Empty: everybody's.")
    max_pages: int = Field(
        default=0, description="At most so many pages; the next run goes on. 0: all that are missing."
    )


@dg.multi_asset(
    name="page_embeddings", specs=[table_spec("page_embeddings", freshness_policy=_FRESH)], can_subset=False
)
def page_embeddings(
    context: dg.AssetExecutionContext, config: EmbeddingsConfig, postgres: PostgresResource
) -> dg.MaterializeResult[None]:
    """Embed the pages that the configured model has not embedded as they are now; remove vectors of gone pages.

    Killed or cancelled, what is stored stays, and the next run goes on.

    Raises:
        Failure: the model or the database cannot be used, or gave up in the middle; in words.
    """
    started = time.monotonic()
    try:
        check_database(postgres.endpoints().database_url)
        if provider_from_settings() is None:
            context.log.warning("OMNIOPS_EMBEDDINGS is none: nothing is embedded, and search is full text alone")
            return dg.MaterializeResult(metadata={"model": "none", "pages": 0})
        provider = usable_provider(postgres.engine())
        done = _embed(context, config, postgres)
    except (
        DatabaseError, EmbeddingError, InvalidSetting, InvalidSlug, RefusedOrder, ServiceError, UnknownCustomer,
    ) as error:  # fmt: skip
        raise dg.Failure(description=str(error.args[0] if error.args else error), allow_retries=False) from error
    with snapshot(postgres) as connection:
        customers = store.by_customer(connection, provider.model)
    metadata = {
        **_figures(done),
        "model": provider.model,
        "provider": provider.name,
        "dimensions": provider.dimensions,
        "seconds": round(time.monotonic() - started, 3),
        **_of_customers(customers),
    }
    if done.stopped is not None and not done.bounded:
        msg = f"not all pages were embedded: {done.stopped}. What is embedded is kept; the next run goes on"
        raise dg.Failure(description=msg, metadata=metadata, allow_retries=False) from EmbeddingError(done.stopped)
    return dg.MaterializeResult(metadata=metadata)


def _embed(context: dg.AssetExecutionContext, config: EmbeddingsConfig, postgres: PostgresResource) -> EmbedProgress:
    if not 0 <= config.max_pages <= _MAX_PAGES:
        msg = f"max_pages is {config.max_pages}, but it must be from 0 (no limit) to {_MAX_PAGES:,} pages"
        raise RefusedOrder(msg)
    engine = postgres.engine()
    provider = usable_provider(engine)
    with service_connection(engine=engine) as connection:
        customer = customer_id_of(connection, config.customer) if config.customer else None
        waiting = store.count_waiting(connection, provider.model, customer_id=customer)
    context.log.info(f"{waiting:,} pages are to be embedded by {provider.model}")
    last = time.monotonic()

    def report(now: EmbedProgress) -> None:
        nonlocal last
        if time.monotonic() - last >= _REPORT_SECONDS:
            last = time.monotonic()
            context.log.info(
                f"{now.pages:,} of {waiting:,} pages embedded: {now.chunks:,} pieces, {now.embedded:,} of them new"
            )

    return in_a_thread(
        lambda stop, tell: embed_missing(
            engine, provider, customer_id=customer, limit=config.max_pages or None, stop=stop, on_progress=tell,
            cache=postgres.job_manager().cache,
        ),
        report,
    )  # fmt: skip


def _figures(done: EmbedProgress) -> dict[str, Any]:
    """What this run did; what did not happen is left out."""
    return {
        "pages": done.pages,
        "chunks": done.chunks,
        "chunks embedded": done.embedded,
        **({"pages cut": done.cut} if done.cut else {}),
        **({"pages begun, which the next run ends": done.unfinished} if done.unfinished else {}),
        **({"vectors removed of pages": done.removed} if done.removed else {}),
        **({"customers passed over": done.skipped_customers} if done.skipped_customers else {}),
        **({"stopped": done.stopped} if done.stopped else {}),
    }


def _of_customers(customers: Sequence[CustomerEmbeddings]) -> dict[str, Any]:
    """What there is now, by customer."""
    figures: dict[str, Any] = {
        "dagster/row_count": sum(one.chunks for one in customers),
        "pages waiting": sum(one.waiting_pages for one in customers),
        "customers": len(customers),
    }
    if not customers:
        return figures
    shown = customers[:_TABLE_CUSTOMERS]
    left_out = len(customers) - len(shown)
    table = Table(
        "By customer",
        ["customer", "pieces", "pages waiting"],
        [[one.customer, one.chunks, one.waiting_pages] for one in shown],
        note=f"and {left_out:,} more" if left_out else "",
    )
    largest = customers[:_PLOTTED_CUSTOMERS]
    plot = bars(
        [one.customer for one in largest],
        [Series("pieces", [one.chunks for one in largest])],
        title="Pieces with a vector, by customer",
        unit="pieces",
    )
    return {
        **figures,
        "by customer": dg.MetadataValue.md(as_markdown_table(table)),
        "pieces": dg.MetadataValue.md(as_markdown(plot)),
    }


EMBEDDING_ASSETS: Final = (page_embeddings,)
