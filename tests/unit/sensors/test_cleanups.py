"""What there is to say of a cleanup: of what ran, of when it was due, and of the time alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.alerts import Alert
from resources.postgres.catalogue import POLICIES
from sensors.cleanups import CLEANUP_DID_NOT_RUN, DUE_WITHIN, CleanupRuns, judge
from sensors.run_failures import CLEANUP_FAILED

if TYPE_CHECKING:
    from sensors.alerting import Over

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
QUEUE, JOBS = POLICIES["message_queue"], POLICIES["scrape_jobs"]


def ago(**time: float) -> datetime:
    return NOW - timedelta(**time)


def completed(hours: float) -> CleanupRuns:
    return CleanupRuns(completed_at=ago(hours=hours), completed_start=ago(hours=hours, minutes=1))


def failed(hours: float, completed_hours: float | None = None, **fields: object) -> CleanupRuns:
    return CleanupRuns(
        completed_at=None if completed_hours is None else ago(hours=completed_hours),
        completed_start=None if completed_hours is None else ago(hours=completed_hours, minutes=1),
        failed_at=ago(hours=hours),
        failed_start=ago(hours=hours, minutes=1),
        failures=1,
        error="lock timeout",
        **fields,  # type: ignore[arg-type]
    )


def said(findings: list[Alert | Over]) -> dict[str, bool]:
    """Alert → whether it is open; what nothing is said of is not in it."""
    return {finding.alert: isinstance(finding, Alert) for finding in findings}


def test_a_cleanup_that_ran_in_time_closes_both_alerts() -> None:
    assert said(judge(QUEUE, completed(5), ago(days=100), NOW)) == {CLEANUP_FAILED: False, CLEANUP_DID_NOT_RUN: False}


def test_a_cleanup_that_failed_after_the_last_good_one_is_an_alert_with_its_reason_and_run() -> None:
    findings = judge(QUEUE, failed(1, 25, run_id="r-1", record_id=7), ago(days=100), NOW)
    assert said(findings) == {CLEANUP_FAILED: True, CLEANUP_DID_NOT_RUN: False}
    alert = next(finding for finding in findings if isinstance(finding, Alert))
    assert "lock timeout" in alert.message
    assert (alert.run_id, alert.occurrence, alert.episode) == ("r-1", "r-1", "message_queue")
    assert "omniops cleanup message_queue" in alert.what_to_do


def test_a_failure_of_the_command_line_is_one_occurrence_by_its_record() -> None:
    (alert, _) = judge(QUEUE, failed(1, 25, record_id=7), ago(days=100), NOW)
    assert isinstance(alert, Alert)
    assert alert.occurrence == "retention_runs/7"


def test_the_next_good_one_ends_the_failure() -> None:
    assert said(judge(QUEUE, failed(3, 1), ago(days=100), NOW))[CLEANUP_FAILED] is False


def test_a_failure_without_a_row_ends_only_by_a_run_that_began_after_it() -> None:
    # A Dagster run that failed before its policy did left an alert and no row.
    assert CLEANUP_FAILED not in said(judge(QUEUE, completed(5), ago(days=9), NOW, open_since=ago(hours=1)))
    assert said(judge(QUEUE, completed(1), ago(days=9), NOW, open_since=ago(hours=5)))[CLEANUP_FAILED] is False


@pytest.mark.parametrize("policy", [QUEUE, JOBS], ids=lambda policy: policy.name)
def test_a_cleanup_that_did_not_run_is_an_alert_after_period_and_grace(policy: object) -> None:
    period, grace = DUE_WITHIN[policy.schedule]  # type: ignore[attr-defined]
    limit = (period + grace) / timedelta(hours=1)
    for hours, overdue in ((limit - 0.1, False), (limit + 0.1, True)):
        assert said(judge(policy, completed(hours), ago(days=999), NOW))[CLEANUP_DID_NOT_RUN] is overdue  # type: ignore[arg-type]
        # Before the first run it counts from when the platform was first looked at.
        assert said(judge(policy, CleanupRuns(), ago(hours=hours), NOW))[CLEANUP_DID_NOT_RUN] is overdue  # type: ignore[arg-type]


def test_a_fresh_installation_is_not_alerted() -> None:
    for policy in (QUEUE, JOBS):
        assert said(judge(policy, CleanupRuns(), NOW, NOW)) == {CLEANUP_DID_NOT_RUN: False}


def test_a_cleanup_that_only_fails_has_not_run_either() -> None:
    findings = judge(QUEUE, failed(1), ago(days=3), NOW)
    assert said(findings) == {CLEANUP_FAILED: True, CLEANUP_DID_NOT_RUN: True}
    words = " ".join(finding.message for finding in findings if isinstance(finding, Alert))
    assert "has never run to its end" in words


def test_a_policy_that_nothing_schedules_is_never_due() -> None:
    assert said(judge(POLICIES["for_good"], CleanupRuns(), ago(days=9_999), NOW)) == {}


def test_a_row_of_the_future_proves_no_run_for_longer_than_now() -> None:
    runs = CleanupRuns(completed_at=NOW + timedelta(days=365), completed_start=NOW + timedelta(days=365))
    assert said(judge(QUEUE, runs, ago(days=3), NOW))[CLEANUP_DID_NOT_RUN] is False


def test_every_schedule_of_the_catalogue_has_its_time() -> None:
    assert {policy.schedule for policy in POLICIES.values()} - {None} <= set(DUE_WITHIN)


minutes = st.integers(0, 600_000)


@given(done=st.none() | minutes, wrong=st.none() | minutes, seen=minutes)
def test_every_past_has_one_answer_for_each_alert(done: int | None, wrong: int | None, seen: int) -> None:
    runs = CleanupRuns(
        completed_at=None if done is None else ago(minutes=done),
        completed_start=None if done is None else ago(minutes=done + 5),
        failed_at=None if wrong is None else ago(minutes=wrong),
        failed_start=None if wrong is None else ago(minutes=wrong + 5),
    )
    findings = judge(QUEUE, runs, ago(minutes=seen), NOW)
    verdicts = said(findings)
    assert len(verdicts) == len(findings)
    assert verdicts.get(CLEANUP_FAILED, False) is (wrong is not None and (done is None or wrong < done))
    assert verdicts[CLEANUP_DID_NOT_RUN] is ((done if done is not None else seen) > 30 * 60)
