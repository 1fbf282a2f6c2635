"""The job `embeddings`: pages that have no vectors yet, of all customers. Each night, by `page_embeddings_daily`."""

from __future__ import annotations

import dagster as dg

embeddings = dg.define_asset_job(
    "embeddings",
    # The checks of tenancy that this table shares with all others are the job `reports`' work.
    selection=dg.AssetSelection.assets("page_embeddings").without_checks(),
    description="Embeds the pages that the configured model has not embedded as they are now, of all customers, and "
    "removes the vectors of pages that are gone. Killed or cancelled, the next run goes on.",
    executor_def=dg.in_process_executor,
    # A run whose process died is started again: what it had stored is not done twice.
    tags={"dagster/max_retries": "2"},
)
