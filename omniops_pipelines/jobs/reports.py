"""The job `reports`: every report, and every check of what the tables hold."""

from __future__ import annotations

import dagster as dg

from assets.checks import CHECKS
from assets.statistics import STATISTICS_CHECKS

# One process: a report is a few queries, and a process for each would cost more than they do.
reports = dg.define_asset_job(
    "reports",
    selection=dg.AssetSelection.groups("retention", "health")
    | dg.AssetSelection.tag("omniops/tier", "report")
    | dg.AssetSelection.checks(*CHECKS, *STATISTICS_CHECKS),
    description="All reports (retention, health, crawl performance) and all checks of the tables. A report that "
    "fails holds up no other; the pages are in OMNIOPS_HOME/reports.",
    executor_def=dg.in_process_executor,
)
