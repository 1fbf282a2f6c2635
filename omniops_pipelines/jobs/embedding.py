"""The op `embed_pages`, the last of a crawl: vectors of the job's pages whose text changed.

It stands behind `complete_crawl`: a model that is away is no reason to call a crawl failed whose pages are stored.
What it leaves is done by the same job run again, by `omniops embed --missing`, or by the night's run.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the ops' own.
"""

import time
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from omniops_pipelines import progress
from resources.postgres.connection import DatabaseError
from resources.postgres.resource import PostgresResource
from resources.run_tags import TAG_ON_INTERRUPT
from resources.settings import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Callable

    from resources.content.embed import EmbedProgress

INTERRUPTED_EMBEDDING: Final = (
    "embedding was interrupted: the crawl is complete, what is embedded is kept, and the rest is done by the same "
    "job id again or by `omniops embed --missing`"
)

# A process that was killed is started again so often.
_RESTARTS: Final = 2
# A line in the run's log costs a connection, so they are few.
_REPORT_SECONDS: Final = 10.0


@dg.op(
    description="Embeds the pages of the job whose text changed; of those, only the pieces that changed.",
    retry_policy=dg.RetryPolicy(max_retries=_RESTARTS),
)
def embed_pages(
    context: dg.OpExecutionContext, to_embed: dict[str, Any], postgres: PostgresResource
) -> dict[str, Any]:
    """Embed what the job's pages lack, batch by batch, each in one transaction.

    Raises:
        Failure: the model cannot be used or gave up; the pages and what was embedded are kept.
    """
    # Loaded by whoever embeds: a crawl without needs none of it.
    from resources.content.embed import embed_missing, in_a_thread, usable_provider  # noqa: PLC0415
    from resources.content.embeddings import EmbeddingError  # noqa: PLC0415
    from resources.postgres import embeddings as store  # noqa: PLC0415
    from resources.postgres.tenancy import service_connection  # noqa: PLC0415

    job_id: str = to_embed["job_id"]
    manager = postgres.job_manager()
    engine = postgres.engine()
    job = manager.get_job_from_postgres(job_id)
    if job is None:
        msg = f"job {job_id} was removed before its pages were embedded"
        raise dg.Failure(description=msg, allow_retries=False)
    only = {"customer_id": job["customer_id"], "job_id": job_id}
    try:
        provider = usable_provider(engine)
        with service_connection(engine=engine) as connection:
            waiting = store.count_waiting(connection, provider.model, **only)
        report = _reporter(context, job_id, waiting)
        done = in_a_thread(
            lambda stop, tell: embed_missing(
                engine, provider, **only, wait=True, stop=stop, on_progress=tell, cache=manager.cache
            ),
            report,
        )
    except (EmbeddingError, DatabaseError, InvalidSetting) as error:
        raise dg.Failure(description=_not_embedded(job_id, str(error)), allow_retries=False) from error
    except Exception:
        raise
    except BaseException as error:  # an interruption, which Dagster would answer by the policy for killed processes
        if context.run.tags.get(TAG_ON_INTERRUPT) == "paused":
            context.instance.report_run_canceling(context.run, message="interrupted at the command line")
        raise dg.Failure(description=INTERRUPTED_EMBEDDING, allow_retries=False) from error
    figures = {"model": provider.model, "dimensions": provider.dimensions, **done.as_dict()}
    with service_connection(engine=engine) as connection:
        figures["left"] = store.count_waiting(connection, provider.model, **only)
        rows = store.count_chunks(connection, provider.model, job["customer_id"])
    context.log_event(
        dg.AssetMaterialization(
            asset_key="page_embeddings",
            description=f"{rows} pieces of the customer by {provider.model} after job {job_id}",
            metadata={
                "dagster/row_count": rows,
                "job_id": job_id,
                "customer": to_embed["customer"],
                **_shown(figures),
            },
        )
    )
    if done.stopped is not None and not done.bounded:
        raise dg.Failure(
            description=_not_embedded(job_id, done.stopped), metadata=_shown(figures), allow_retries=False
        ) from EmbeddingError(done.stopped)
    if done.stopped is not None:
        context.log.warning(done.stopped)
    context.add_output_metadata(_shown(figures))
    return figures


def _not_embedded(job_id: str, why: str) -> str:
    return (
        f"pages of job {job_id} were not embedded: {why}. The crawl is complete and its pages are stored; "
        "`omniops embed --missing` does the rest when that is mended"
    )


def _shown(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if value is not None}


def _reporter(context: dg.OpExecutionContext, job_id: str, pages: int) -> "Callable[[EmbedProgress], None]":
    """Tells the terminal at once, and the run's log every few seconds."""
    last = time.monotonic()
    context.log.info(f"{pages:,} pages of job {job_id} are to be embedded")

    def report(now: "EmbedProgress") -> None:
        nonlocal last
        progress.publish_embedding(job_id, now.pages, pages)
        if time.monotonic() - last < _REPORT_SECONDS:
            return
        last = time.monotonic()
        line = f"{now.pages:,} of {pages:,} pages embedded: {now.chunks:,} pieces, {now.embedded:,} of them new"
        try:
            context.log.info(line)
            context.log_event(
                dg.AssetObservation(asset_key="page_embeddings", description=line, metadata=_shown(now.as_dict()))
            )
        except Exception as error:  # noqa: BLE001 - Dagster's storage may be away for a moment; the model is not
            dg.get_dagster_logger().debug("progress could not be reported: %s", error)

    return report
