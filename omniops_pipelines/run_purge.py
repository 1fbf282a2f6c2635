"""Dagster's own history: old runs of op jobs go, with their events and what their ops left on disk.

Deleting a run deletes its materialisations, observations and check results too. So a run stays, however old, while
one of its own is the latest of its asset and partition (or of its check): the asset catalogue looks the same before
and after a purge. Runs of asset jobs are never touched: they are the assets' history.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dagster as dg
from dagster import DagsterEventType, DagsterRunStatus, RunsFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

logger = logging.getLogger(__name__)

_PAGE: Final = 200
_CHECKS: Final = 100
_FINISHED: Final = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
_KEPT_WITH_ASSETS: Final = {
    DagsterEventType.ASSET_MATERIALIZATION,
    DagsterEventType.ASSET_OBSERVATION,
    DagsterEventType.ASSET_CHECK_EVALUATION,
}
_RUN_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(slots=True)
class PurgeResult:
    """What a purge did.

    Attributes:
        purged: runs that are gone (or, in a dry run, would be), by job.
        spared: runs that are old enough and stay for their assets' sake, by job.
        folders: folders on this machine's disk that went with them.
        bounded: True if it stopped at its bound: there is more for the next one.
    """

    purged: Counter[str] = field(default_factory=Counter)
    spared: Counter[str] = field(default_factory=Counter)
    folders: int = 0
    bounded: bool = False


def purge_runs(
    instance: dg.DagsterInstance,
    jobs: Sequence[str],
    ended_before: datetime,
    *,
    dry_run: bool,
    max_runs: int,
    on_run: Callable[[int], None] | None = None,
) -> PurgeResult:
    """Delete finished runs of these jobs, the oldest first. It can be killed at any moment and run again.

    Args:
        instance: whose runs.
        jobs: names; runs of other jobs are not looked at.
        ended_before: runs that ended later stay.
        dry_run: look only.
        max_runs: at most so many are deleted.
        on_run: called after each run with the number of those deleted so far; an exception from it ends the purge.
    """
    result = PurgeResult()
    latest = _Latest(instance)
    storage = Path(instance.storage_directory())
    for job, run_id in _old_runs(instance, jobs, ended_before, result, dry_run=dry_run):
        if result.purged.total() >= max_runs:
            result.bounded = True
            break
        if latest.is_of(run_id):
            result.spared[job] += 1
            continue
        if not dry_run:
            result.folders += _remove_folder(storage, run_id)
            # Events before the run itself: killed in between, the run is found again.
            instance.event_log_storage.delete_events(run_id)
            instance.delete_run(run_id)
        result.purged[job] += 1
        if on_run is not None:
            on_run(result.purged.total())
    return result


def _old_runs(
    instance: dg.DagsterInstance, jobs: Sequence[str], ended_before: datetime, result: PurgeResult, *, dry_run: bool
) -> Iterator[tuple[str, str]]:
    for job in jobs:
        wanted = RunsFilter(job_name=job, statuses=_FINISHED, updated_before=ended_before)
        cursor: str | None = None
        while True:
            page = instance.get_run_records(wanted, limit=_PAGE, cursor=cursor, ascending=True)
            for record in page:
                run_id = record.dagster_run.run_id
                purged = result.purged[job]
                yield job, run_id
                # The next page begins after a run that is still there.
                if result.purged[job] == purged or dry_run:
                    cursor = run_id
            if len(page) < _PAGE:
                break


class _Latest:
    """Which run has the latest event of an asset and partition, or of a check; asked once for each."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._known: dict[tuple[DagsterEventType, str, str | None], str | None] = {}

    def is_of(self, run_id: str) -> bool:
        """True if the latest event of anything is this run's."""
        cursor: str | None = None
        while True:
            found = self._instance.get_records_for_run(run_id, cursor, of_type=_KEPT_WITH_ASSETS, limit=1_000)
            for record in found.records:
                event = record.event_log_entry.get_dagster_event()
                if event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
                    evaluation = event.asset_check_evaluation_data
                    latest = self._of_check(dg.AssetCheckKey(evaluation.asset_key, evaluation.check_name))
                elif event.asset_key is not None:
                    latest = self._of_asset(event.event_type, event.asset_key, event.partition)
                else:
                    continue
                if latest == run_id:
                    return True
            if not found.has_more:
                return False
            cursor = found.cursor

    def _of_asset(self, kind: DagsterEventType, asset: dg.AssetKey, partition: str | None) -> str | None:
        key = (kind, asset.to_string(), partition)
        if key not in self._known:
            wanted = dg.AssetRecordsFilter(asset, asset_partitions=None if partition is None else [partition])
            fetch = (
                self._instance.fetch_materializations
                if kind is DagsterEventType.ASSET_MATERIALIZATION
                else self._instance.fetch_observations
            )
            records = fetch(wanted, limit=1).records
            self._known[key] = records[0].run_id if records else None
        return self._known[key]

    def _of_check(self, check: dg.AssetCheckKey) -> str | None:
        key = (DagsterEventType.ASSET_CHECK_EVALUATION, check.to_user_string(), None)
        if key not in self._known:
            # Planned ones among them may never have come to be.
            history = self._instance.event_log_storage.get_asset_check_execution_history(check, limit=_CHECKS)
            done = (record.run_id for record in history if record.status.name in ("SUCCEEDED", "FAILED"))
            self._known[key] = next(done, None)
        return self._known[key]


def _remove_folder(storage: Path, run_id: str) -> int:
    """Remove what the run's ops left on this machine (outputs and standard output); 1 if there was any."""
    folder = storage / run_id
    if not _RUN_ID.fullmatch(run_id) or folder.is_symlink() or not folder.is_dir():
        return 0
    try:
        shutil.rmtree(folder)
    except OSError as error:
        # The run goes all the same: whoever tidies the disk later finds a folder without a run.
        logger.warning("the folder of run %s stays: %s", run_id, error)
        return 0
    return 1
