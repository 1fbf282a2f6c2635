"""What becomes of a queued job: of its row, its runs and the time alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniops_pipelines.jobs.crawl import CrawlConfig, crawl_job
from resources.crawler.crawl_order import InvalidOrder
from resources.crawler.stored_order import ORDER_TYPES
from sensors.crawl_jobs import (
    CLAIM_SECONDS,
    Decision,
    End,
    JobRun,
    Launch,
    Status,
    Wait,
    attempt_of,
    next_attempt,
    run_key,
)
from sensors.queued_jobs import MAX_ATTEMPTS, QueuedJob, decide, read_order

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def queued(config: Any = None, **changes: Any) -> QueuedJob:
    text = config if isinstance(config, str) else json.dumps(config or {})
    fields = {"job_id": "j1", "customer": "acme", "domain": "shop.example", "job_type": "full_crawl", "config": text}
    return QueuedJob(**{**fields, **changes})


def a_run(status: dg.DagsterRunStatus, attempt: int | None = 1, minutes: float = 1.0) -> JobRun:
    began = NOW - timedelta(minutes=minutes)
    ended = NOW if status in (Status.SUCCESS, Status.FAILURE, Status.CANCELED) else None
    return JobRun(f"run-{attempt}", status, attempt, began, began, ended)


def config_of(decision: Decision) -> dict[str, Any]:
    assert isinstance(decision, Launch)
    config: dict[str, Any] = decision.request.run_config["ops"]["plan_crawl"]["config"]
    return config


def test_a_row_with_nothing_but_a_domain_is_its_home_page() -> None:
    decision = decide(queued(), [], NOW)
    assert isinstance(decision, Launch)
    assert decision.request.run_key == "job-j1-attempt-1"
    assert config_of(decision) == {
        "urls": ["https://shop.example/"], "customer": "acme", "job_id": "j1", "job_type": "full_crawl",
    }  # fmt: skip
    # Before the run starts, so that the run queue's limits hold.
    assert decision.request.tags == {
        "omniops/job_id": "j1", "omniops/domain": "shop.example", "omniops/customer": "acme",
    }  # fmt: skip


def test_what_the_row_says_is_in_the_runs_configuration() -> None:
    config = {
        "urls": ["HTTP://Shop.Example:80/a/../b#x", "https://shop.example/c"], "max_pages": 7, "max_depth": 2.0,
        "max_seconds": 60, "concurrency": 3, "include": ["/b/**"], "exclude": [], "respect_robots": False,
        "allow_private": True, "job_type": "single_page", "embed": None,
    }  # fmt: skip
    decision = decide(queued(config, job_type="single_page"), [], NOW)
    assert config_of(decision) == {
        "urls": ["http://shop.example/b", "https://shop.example/c"], "customer": "acme", "job_id": "j1",
        "job_type": "single_page", "max_pages": 7, "max_depth": 2, "max_seconds": 60, "concurrency": 3,
        "include": ["/b/**"], "exclude": [], "respect_robots": False, "allow_private": True,
    }  # fmt: skip


def test_the_tag_of_the_domain_is_the_host_that_is_asked() -> None:
    decision = decide(queued({"urls": ["http://10.0.0.1:8080/"]}, domain="a name of theirs"), [], NOW)
    assert isinstance(decision, Launch)
    assert decision.request.tags["omniops/domain"] == "10.0.0.1:8080"


def test_every_field_of_an_order_is_one_of_the_runs_configuration() -> None:
    assert set(ORDER_TYPES) <= set(CrawlConfig.model_fields)


def test_every_request_is_a_configuration_that_the_job_takes() -> None:
    config = {
        "urls": ["http://a.example/"],
        "max_seconds": 5,
        "max_pages": 1,
        "include": ["/x/**"],
        "allow_private": True,
    }
    decision = decide(queued(config), [], NOW)
    assert isinstance(decision, Launch)
    assert dg.validate_run_config(crawl_job, decision.request.run_config)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (queued({"max_page": 5}), "unknown fields: 'max_page'"),
        (queued({"customer": "globex"}), "unknown fields: 'customer'"),
        (queued({"max_pages": "5"}), "max_pages is '5', but it must be a whole number"),
        (queued({"max_pages": 1.5}), "max_pages is 1.5, but it must be a whole number"),
        (queued({"max_pages": True}), "max_pages is True"),
        (queued({"max_pages": 0}), "max_pages is 0"),
        (queued('{"max_pages": ' + "9" * 400 + "}"), "max_pages is out of all bounds"),
        (queued('{"max_pages": ' + "9" * 9_000 + "}"), "cannot be read as JSON"),
        (queued("[" * 100_000), "cannot be read as JSON"),
        (queued('"text"'), "must be an object"),
        (queued({"urls": "https://a.example/"}), "urls is 'https://a.example/', but it must be a list of texts"),
        (queued({"urls": ["https://a.example/", 5]}), "must be a list of texts"),
        (queued({"urls": ["ftp://a.example/"]}), "ftp"),
        (queued({"include": ["docs"]}), "docs"),
        (queued({"allow_private": "yes"}), "allow_private is 'yes', but it must be true or false"),
        (queued({"job_type": "single_page"}), "leave it out"),
        (queued({"job_type": 5}), "job_type is 5"),
        (queued(domain="shop.example/path"), "more than a host"),
        (queued(domain="user@shop.example"), "host"),
        (queued(domain="shop example"), "host"),
        (queued(domain="../etc"), "host"),
        (queued(job_id="new\nline"), "job id"),
        (QueuedJob("j1", "acme", "shop.example", "full_crawl", None), "more than"),
    ],
)
def test_a_bad_row_is_refused_with_what_is_wrong(row: QueuedJob, words: str) -> None:
    with pytest.raises(InvalidOrder) as refused:
        decide(row, [], NOW)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 700


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@given(
    config=st.dictionaries(
        st.one_of(st.sampled_from(sorted(ORDER_TYPES)), st.text(max_size=8)), json_values, max_size=4
    ),
    domain=st.one_of(st.just("shop.example"), st.text(min_size=1, max_size=30)),
    job_id=st.text(min_size=1, max_size=30),
)
def test_whatever_another_program_writes_is_a_valid_request_or_a_reason(
    config: dict[str, Any], domain: str, job_id: str
) -> None:
    row = queued(config, domain=domain, job_id=job_id)
    try:
        decision = decide(row, [], NOW)
    except InvalidOrder:
        return
    assert isinstance(decision, Launch)
    if config.get("job_type") in (None, "full_crawl") and all(
        name in CrawlConfig.model_fields for name in config_of(decision)
    ):
        assert dg.validate_run_config(crawl_job, decision.request.run_config)


# --- attempts -------------------------------------------------------------------------------------------------

IN_FLIGHT = (Status.QUEUED, Status.STARTING, Status.STARTED, Status.CANCELING)


@pytest.mark.parametrize("status", IN_FLIGHT)
def test_a_job_with_a_run_in_flight_gets_no_other(status: dg.DagsterRunStatus) -> None:
    assert isinstance(decide(queued(), [a_run(status)], NOW), Wait)
    assert isinstance(decide(queued(), [a_run(Status.FAILURE), a_run(status, 2)], NOW), Wait)


def test_a_run_that_was_made_and_never_submitted_is_asked_for_again_by_its_own_key() -> None:
    decision = decide(queued(), [a_run(Status.FAILURE), a_run(Status.NOT_STARTED, 2)], NOW)
    assert isinstance(decision, Launch)
    assert decision.request.run_key == "job-j1-attempt-2"


def test_a_run_that_somebody_else_is_about_to_start_is_waited_for() -> None:
    assert isinstance(decide(queued(), [a_run(Status.NOT_STARTED, None)], NOW), Wait)


def test_a_killed_run_is_followed_by_the_next_attempt_and_after_the_last_the_job_fails() -> None:
    runs: list[JobRun] = []
    keys = []
    for attempt in range(1, MAX_ATTEMPTS + 1):
        decision = decide(queued(), runs, NOW)
        assert isinstance(decision, Launch)
        keys.append(decision.request.run_key)
        runs.append(a_run(Status.FAILURE, attempt))
    assert keys == [f"job-j1-attempt-{n}" for n in range(1, MAX_ATTEMPTS + 1)]
    end = decide(queued(), runs, NOW)
    assert isinstance(end, End)
    assert (end.status, "run-3" in end.reason) == ("failed", True)


def test_a_run_that_began_long_ago_and_claimed_nothing_is_dead_whatever_dagster_thinks() -> None:
    dead = a_run(Status.STARTED, None, minutes=CLAIM_SECONDS / 60 + 1)
    assert isinstance(decide(queued(), [dead], NOW), Launch)
    alive = a_run(Status.STARTED, None, minutes=CLAIM_SECONDS / 60 - 1)
    assert isinstance(decide(queued(), [alive], NOW), Wait)
    # One that waits in the queue may wait for days.
    assert isinstance(decide(queued(), [a_run(Status.QUEUED, minutes=10_000)], NOW), Wait)


def test_a_run_that_was_cancelled_before_it_began_cancels_its_job() -> None:
    end = decide(queued(), [a_run(Status.FAILURE), a_run(Status.CANCELED, 2)], NOW)
    assert isinstance(end, End)
    assert end.status == "cancelled"
    # An older one does not: somebody queued it again.
    assert isinstance(decide(queued(), [a_run(Status.CANCELED), a_run(Status.FAILURE, 2)], NOW), Launch)


def test_a_key_that_was_used_once_is_never_used_again() -> None:
    runs = [a_run(Status.FAILURE, 4), a_run(Status.SUCCESS, None)]
    assert next_attempt(runs) == 5


@given(job_id=st.text(min_size=1, max_size=20), other=st.text(min_size=1, max_size=20), n=st.integers(1, 10**8))
def test_a_key_tells_its_attempt_to_its_own_job_alone(job_id: str, other: str, n: int) -> None:
    assert attempt_of(run_key(job_id, n), job_id) == n
    if not run_key(job_id, n).startswith(f"job-{other}-attempt-"):
        assert attempt_of(run_key(job_id, n), other) is None
    assert attempt_of(None, job_id) is None
    assert attempt_of(f"job-{job_id}-attempt-²", job_id) is None


def test_a_bad_row_is_read_only_when_it_is_its_turn() -> None:
    # A run in flight has the job, whatever stands in its row by now.
    assert isinstance(decide(queued("["), [a_run(Status.STARTED)], NOW), Wait)


def test_an_order_of_a_row_is_the_rows_own() -> None:
    order, plan, _ = read_order(queued({"max_pages": 3}))
    assert (order.customer, order.job_id, plan.max_pages) == ("acme", "j1", 3)
