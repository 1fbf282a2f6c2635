"""What becomes of a running job without a live worker: of its row, its lease, its runs and the time alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from omniops_pipelines.jobs.crawl import crawl_job
from sensors.crawl_jobs import End, JobRun, Launch, Status, Wait
from sensors.stalled_jobs import (
    BACKOFF_SECONDS,
    END_GRACE_SECONDS,
    LEASE_GRACE_SECONDS,
    MAX_ATTEMPTS,
    SILENCE_SECONDS,
    RunningJob,
    decide,
)

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
PLAN = json.dumps({"urls": ["https://shop.example/"], "job_type": "full_crawl", "max_pages": 10, "keep_text": True})


def before(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def running(lease_ended: float | None = LEASE_GRACE_SECONDS + 1, **changes: Any) -> RunningJob:
    fields: dict[str, Any] = {
        "job_id": "j1", "customer": "acme", "domain": "shop.example", "run_id": "own", "started_at": before(7_200),
        "leased_until": None if lease_ended is None else before(lease_ended), "config": PLAN, **changes,
    }  # fmt: skip
    return RunningJob(**fields)


def own_run(status: dg.DagsterRunStatus, ended: float | None = None, attempt: int | None = None, **k: Any) -> JobRun:
    return JobRun("own", status, attempt, before(7_300), before(7_200), None if ended is None else before(ended), **k)


def other_run(status: dg.DagsterRunStatus, attempt: int | None, age: float = 60) -> JobRun:
    return JobRun(f"other-{attempt}", status, attempt, before(age), before(age))


@pytest.mark.parametrize("status", [Status.STARTED, Status.FAILURE, Status.SUCCESS])
def test_a_killed_crawl_is_resumed_whatever_dagster_thinks_of_its_run(status: dg.DagsterRunStatus) -> None:
    own = own_run(status, ended=600 if status is not Status.STARTED else None)
    decision = decide(running(), [own], own, None, NOW)
    assert isinstance(decision, Launch)
    assert decision.request.run_key == "job-j1-attempt-1"
    assert decision.request.run_config == {"ops": {"plan_crawl": {"config": {
        "urls": ["https://shop.example/"], "customer": "acme", "job_id": "j1",
    }}}}  # fmt: skip
    assert decision.request.tags["omniops/domain"] == "shop.example"
    assert dg.validate_run_config(crawl_job, decision.request.run_config)


def test_a_job_whose_lease_has_just_run_out_is_left_alone() -> None:
    own = own_run(Status.STARTED)
    assert isinstance(decide(running(LEASE_GRACE_SECONDS - 1), [own], own, None, NOW), Wait)


def test_a_run_after_its_crawl_is_alive_as_long_as_it_says_something() -> None:
    own = own_run(Status.STARTED)
    job = running(None)
    assert isinstance(decide(job, [own], own, before(SILENCE_SECONDS - 1), NOW), Wait)
    assert isinstance(decide(job, [own], own, before(SILENCE_SECONDS + 1), NOW), Launch)
    assert isinstance(decide(job, [own], own, None, NOW), Launch)  # it began two hours ago, and said nothing


def test_a_run_that_has_just_ended_may_have_ended_its_job() -> None:
    for grace, expected in ((END_GRACE_SECONDS - 1, Wait), (END_GRACE_SECONDS + 1, Launch)):
        own = own_run(Status.FAILURE, ended=grace)
        assert isinstance(decide(running(None), [own], own, None, NOW), expected)


def test_a_job_of_a_run_that_nobody_knows_is_judged_by_its_lease() -> None:
    assert isinstance(decide(running(), [], None, None, NOW), Launch)
    assert isinstance(decide(running(None), [], None, None, NOW), Launch)
    lately = running(None, started_at=before(60))
    assert isinstance(decide(lately, [], None, None, NOW), Wait)


@pytest.mark.parametrize("status", [Status.NOT_STARTED, Status.QUEUED, Status.STARTING, Status.STARTED])
def test_a_job_that_is_about_to_be_resumed_is_not_resumed_twice(status: dg.DagsterRunStatus) -> None:
    own = own_run(Status.FAILURE, ended=600)
    by_hand = other_run(status, None)
    assert isinstance(decide(running(), [own, by_hand], own, None, NOW), Wait)


def test_a_request_that_was_never_submitted_is_repeated_by_its_own_key() -> None:
    own = own_run(Status.FAILURE, ended=600)
    decision = decide(running(), [own, other_run(Status.NOT_STARTED, 3)], own, None, NOW)
    assert isinstance(decision, Launch)
    assert decision.request.run_key == "job-j1-attempt-3"


def test_a_run_that_started_long_ago_and_never_claimed_does_not_block() -> None:
    own = own_run(Status.FAILURE, ended=600)
    dead = other_run(Status.STARTED, 1, age=3_600)
    decision = decide(running(), [own, dead], own, None, NOW)
    assert isinstance(decision, Launch)
    assert decision.request.run_key == "job-j1-attempt-2"


def test_an_older_run_that_was_killed_does_not_block_the_resumption_of_a_newer_one() -> None:
    own = JobRun("own", Status.FAILURE, 1, before(1_000), None, before(600))
    killed = other_run(Status.STARTED, None, age=1_100)
    decision = decide(running(), [killed, own], own, None, NOW)
    assert isinstance(decision, Launch)
    assert decision.request.run_key == "job-j1-attempt-2"
    about_to_claim = other_run(Status.STARTED, None, age=100)
    assert isinstance(decide(running(), [killed, own, about_to_claim], own, None, NOW), Wait)


@pytest.mark.parametrize(("pauses", "status"), [(False, "cancelled"), (True, "paused")])
def test_what_somebody_stopped_is_not_resumed(pauses: bool, status: str) -> None:
    own = own_run(Status.CANCELED, ended=600, pauses=pauses)
    end = decide(running(), [own], own, None, NOW)
    assert isinstance(end, End)
    assert end.status == status
    stuck = own_run(Status.CANCELING, pauses=pauses)
    assert isinstance(decide(running(), [stuck], stuck, None, NOW), End)


def test_attempts_come_at_growing_distances() -> None:
    for made, pause in enumerate(BACKOFF_SECONDS, 1):
        earlier = [other_run(Status.FAILURE, n, age=90_000) for n in range(1, made)]
        for ended, expected in ((pause - 1, Wait), (pause + 1, Launch)):
            own = own_run(Status.FAILURE, ended=ended, attempt=made)
            assert isinstance(decide(running(), [*earlier, own], own, None, NOW), expected)
    assert len(BACKOFF_SECONDS) == MAX_ATTEMPTS - 1


def test_after_several_runs_that_died_the_job_fails_with_the_reason() -> None:
    own = own_run(Status.FAILURE, ended=600, attempt=MAX_ATTEMPTS)
    earlier = [other_run(Status.FAILURE, n, age=9_000) for n in range(1, MAX_ATTEMPTS)]
    end = decide(running(), [*earlier, own], own, None, NOW)
    assert isinstance(end, End)
    assert end.status == "failed"
    assert f"{MAX_ATTEMPTS} runs" in end.reason
    fewer = own_run(Status.FAILURE, ended=7_000, attempt=MAX_ATTEMPTS)
    assert isinstance(decide(running(), [*earlier[1:], fewer], fewer, None, NOW), Launch)


@pytest.mark.parametrize("config", [None, "[", "{}", '{"urls": "x"}', '{"urls": []}', '{"urls": [1]}', "[" * 100_000])
def test_a_job_whose_plan_cannot_be_read_fails_with_the_reason(config: str | None) -> None:
    end = decide(running(config=config), [], None, None, NOW)
    assert isinstance(end, End)
    assert "plan cannot be read" in end.reason


def test_private_addresses_stay_allowed_where_they_were() -> None:
    decision = decide(
        running(config=json.dumps({"urls": ["http://10.0.0.1/"], "allow_private": True})), [], None, None, NOW
    )
    assert isinstance(decision, Launch)
    assert decision.request.run_config["ops"]["plan_crawl"]["config"]["allow_private"] is True
