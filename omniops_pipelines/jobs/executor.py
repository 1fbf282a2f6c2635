"""Where the ops of a crawl run: in the run's process, or, with several workers, each in a process of its own.

A process costs some two seconds of work for each op, so it is used where it brings something. The run's own
configuration decides (`shards`), so that a run from the Launchpad, a sensor and the command line need nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from omniops_pipelines.jobs.job_record import STEPS_OF_RUN, settle_job
from resources.postgres.resource import PostgresResource

if TYPE_CHECKING:
    from dagster import DagsterEvent
    from dagster._core.execution.context.system import PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan
    from dagster._core.execution.retries import RetryMode

_RETRIES: Final[dict[str, dict[str, object]]] = {"enabled": {}}


def shards_of(run_config: Mapping[str, Any]) -> int:
    """How many workers a run's configuration asks for; 1 where it says nothing that can be read."""
    config: Any = run_config
    for name in ("ops", "plan_crawl", "config"):
        config = config.get(name) if isinstance(config, Mapping) else None
    shards = config.get("shards", 1) if isinstance(config, Mapping) else 1
    return shards if isinstance(shards, int) else 1


class CrawlExecutor(dg.Executor):
    """Ops one after another in this process, or in processes of their own where there are several workers."""

    def __init__(self, init_context: dg.InitExecutorContext) -> None:
        self._init_context = init_context
        self._alone = self._make(dg.in_process_executor, {"retries": _RETRIES})

    def _make(self, definition: dg.ExecutorDefinition, config: Mapping[str, object]) -> dg.Executor:
        create = definition.executor_creation_fn
        if create is None:
            msg = f"this version of Dagster has no {definition.name} executor"
            raise RuntimeError(msg)
        made: dg.Executor = create(self._init_context._replace(executor_config=config))
        return made

    @property
    def retries(self) -> RetryMode:
        """Enabled: a worker whose process was killed is started again."""
        return self._alone.retries

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        """Run the plan."""
        run = plan_context.dagster_run
        shards = shards_of(run.run_config)
        if shards <= 1:
            yield from self._alone.execute(plan_context, execution_plan)
            return
        together = self._make(dg.multiprocess_executor, {"retries": _RETRIES, "max_concurrent": shards})
        try:
            with _steps_of(run.run_id):
                yield from together.execute(plan_context, execution_plan)
        finally:
            # What JobRecord does where the ops are in this process. A run that failed leaves the job to be resumed.
            settle_job(plan_context.instance, run.run_id, PostgresResource(), fail=False)


@contextmanager
def _steps_of(run_id: str) -> Iterator[None]:
    """The processes that are started meanwhile know that they are steps of the run, and not the run."""
    os.environ[STEPS_OF_RUN] = run_id
    try:
        yield
    finally:
        os.environ.pop(STEPS_OF_RUN, None)


@dg.executor(name="crawl_executor")
def crawl_executor(init_context: dg.InitExecutorContext) -> dg.Executor:
    """In process with one worker, in processes with several."""
    return CrawlExecutor(init_context)
