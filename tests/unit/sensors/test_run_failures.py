"""What a failed run is about, whose matter it is, and what ends it."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from resources.postgres.retention import REMOVABLE
from sensors.run_failures import (
    CLEANUP_FAILED,
    CRAWL_FAILED,
    RUN_FAILED,
    Failure,
    Kind,
    Topic,
    alert_for,
    kind_of,
    topic_of,
)

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SITE = {"omniops/job_id": "j1", "omniops/customer": "acme", "omniops/domain": "shop.example"}
REMOVES = {"ops": {"remove": {"config": {"dry_run": False}}}}


def failure(job: str = "crawl", tags: dict[str, str] | None = None, config: object = None, **fields: Any) -> Failure:
    tags = SITE if tags is None else tags
    return Failure("r-1", job, topic_of(job, tags, config), tags, NOW, "it broke", **fields)


@pytest.mark.parametrize(
    ("job", "tags", "config", "topic"),
    [
        ("crawl", SITE, None, Topic(CRAWL_FAILED, "acme/shop.example")),
        ("crawl", {}, None, Topic(RUN_FAILED, "crawl")),
        ("statistics", {"dagster/partition": "2026-11-01"}, None, Topic(RUN_FAILED, "statistics")),
        ("cleanup_message_queue", {}, REMOVES, Topic(CLEANUP_FAILED, "message_queue")),
        ("cleanup_message_queue", {}, {}, Topic(RUN_FAILED, "cleanup_message_queue (dry run)")),
        ("retention", {}, REMOVES, Topic(RUN_FAILED, "retention")),
        ("retention", {}, {"ops": {"a": {"config": {"dry_run": True}}}}, Topic(RUN_FAILED, "retention (dry run)")),
        ("erase_customer", {}, REMOVES, Topic(RUN_FAILED, "erase_customer")),
        ("cleanup_something_else", {}, REMOVES, Topic(RUN_FAILED, "cleanup_something_else")),
    ],
)
def test_an_episode_is_a_job_and_what_it_is_about(
    job: str, tags: dict[str, str], config: object, topic: Topic
) -> None:
    assert topic_of(job, tags, config) == topic


def test_every_policy_that_removes_has_its_episode() -> None:
    for policy in REMOVABLE:
        assert topic_of(f"cleanup_{policy}", {}, REMOVES) == Topic(CLEANUP_FAILED, policy)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"finish_reason": "site_unreachable"}, Kind.SITE),
        ({"finish_reason": "disallowed"}, Kind.SITE),
        ({"errors": ("Failure", "RefusedOrder", "HostUnresolvable")}, Kind.SITE),
        ({"errors": ("Failure", "InvalidOrder")}, Kind.ORDER),
        ({"errors": ("Failure", "RefusedOrder")}, Kind.ORDER),
        ({"errors": ("Failure", "DatabaseUnreachable")}, Kind.PLATFORM),
        ({"finish_reason": "error"}, Kind.PLATFORM),
        ({}, Kind.PLATFORM),
    ],
)
def test_whose_matter_it_is_depends_on_what_failed(fields: dict[str, Any], kind: Kind) -> None:
    assert kind_of(failure(**fields)) is kind


def test_a_site_that_is_down_is_its_owners_matter_and_the_owner_may_read_of_it() -> None:
    customer = uuid4()
    alert = alert_for(failure(finish_reason="site_unreachable", customer_id=customer))
    assert (alert.severity, alert.customer_id, alert.occurrence) == ("info", customer, "r-1")


def test_what_breaks_inside_is_no_customers_to_read() -> None:
    alert = alert_for(failure(errors=("OperationalError",), customer_id=uuid4()))
    assert (alert.severity, alert.customer_id) == ("warning", None)
    assert "omniops crawl --job-id" in alert.what_to_do


def test_a_run_that_died_after_its_job_was_completed_asks_nothing_of_anybody() -> None:
    alert = alert_for(failure(job_completed=True))
    assert (alert.severity, alert.what_to_do) == ("info", "Nothing: job j1 was completed before its run ended.")


def test_pages_that_were_not_embedded_are_to_be_seen_to_although_their_job_is_complete() -> None:
    alert = alert_for(failure(job_completed=True, errors=("Failure", "EmbeddingRefused")))
    assert alert.severity == "warning"
    assert "omniops embed --missing" in (alert.what_to_do or "")


def test_what_must_go_and_did_not_is_critical() -> None:
    for job in ("cleanup_analytics", "retention", "erase_customer"):
        assert alert_for(failure(job, {}, REMOVES)).severity == "critical"
        assert alert_for(failure(job, {}, {})).severity == "warning"
    assert alert_for(failure("statistics", {})).severity == "warning"


def test_a_wrong_configuration_is_of_whoever_launched_it() -> None:
    alert = alert_for(failure(tags={}, errors=("Failure", "InvalidOrder")))
    assert (alert.severity, alert.message) == ("info", "crawl failed: it broke")


def test_a_success_ends_what_it_is_about_and_a_look_ends_no_removal() -> None:
    from sensors.run_failures import topics_ended_by

    def run(job: str, tags: dict[str, str], config: object) -> Any:
        return SimpleNamespace(job_name=job, tags=tags, run_config=config)

    assert topics_ended_by(run("crawl", SITE, {})) == [
        Topic(CRAWL_FAILED, "acme/shop.example"), Topic(RUN_FAILED, "crawl"),
    ]  # fmt: skip
    assert topics_ended_by(run("retention", {}, {})) == [Topic(RUN_FAILED, "retention (dry run)")]
    assert topics_ended_by(run("retention", {}, REMOVES)) == [Topic(RUN_FAILED, "retention")]
    # `retention_runs` says when a cleanup was completed.
    assert topics_ended_by(run("cleanup_analytics", {}, REMOVES)) == []
