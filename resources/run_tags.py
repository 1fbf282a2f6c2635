"""Tags of Dagster runs: which job, domain and customer a run is about. Jobs set them, sensors read them."""

from __future__ import annotations

from typing import Final

TAG_JOB: Final = "omniops/job_id"
TAG_DOMAIN: Final = "omniops/domain"
TAG_CUSTOMER: Final = "omniops/customer"

# What becomes of the job when its run is interrupted: `cancelled` (somebody cancels the run in the UI: the job is
# over) or `paused` (Ctrl-C at the command line: the job can be resumed).
TAG_ON_INTERRUPT: Final = "omniops/on_interrupt"
