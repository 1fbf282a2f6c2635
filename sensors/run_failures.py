"""`run_failure_alerts` and `run_recovery_sensor`: a failed run is an alert, the next success is its end.

An episode is a job and what it is about: for a crawl the customer's site, for a cleanup its policy. Each run counts
once. Dagster shows a failed run to the sensor once, and takes an error of the sensor for an answer; so
`run_recovery_sensor` looks at the lately ended runs again, and reports what is missing.

How bad it is depends on what failed: a site that is down is its owner's matter, and the customer may read of it; a
wrong configuration is of whoever launched the run; the rest is the platform's.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the sensors' own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final
from uuid import UUID

import dagster as dg
from sqlalchemy import Engine, text

from resources.alerts import Alert, Alerts
from resources.postgres.catalogue import POLICIES
from resources.postgres.resource import PostgresResource
from resources.postgres.retention import REMOVABLE
from resources.postgres.watermarks import advance_watermark, read_watermark
from resources.run_tags import TAG_CUSTOMER, TAG_DOMAIN, TAG_JOB
from sensors.alerting import alerts_of
from sensors.crawl_jobs import CRAWL_JOB, Status

RUN_FAILED: Final = "run_failed"
CRAWL_FAILED: Final = "crawl_failed"
CLEANUP_FAILED: Final = "cleanup_failed"
RECOVERABLE: Final = (RUN_FAILED, CRAWL_FAILED)

FAILURE_INTERVAL_SECONDS: Final = 15
RECOVERY_INTERVAL_SECONDS: Final = 60
WATERMARK: Final = "run_recovery"
# Looked at again: a run's end is written by a transaction that may be seen later than a newer one.
OVERLAP: Final = timedelta(minutes=5)
MAX_RUNS: Final = 1_000

# Dagster starts the run again by itself, and only the last failure is one.
_WILL_RETRY_TAG: Final = "dagster/will_retry"
_MAX_MESSAGE: Final = 600

# Jobs whose failure leaves what must not be left.
_REMOVING_JOBS: Final = frozenset({"retention", "erase_customer", *(f"cleanup_{policy}" for policy in REMOVABLE)})

# Exceptions by their names in a run's log (`crawl_order`, `guard`, `jobs`), which is all that is kept of them.
_SITE_ERRORS: Final = frozenset({"HostUnresolvable", "HostUnreachable", "HostRefused"})
_ORDER_ERRORS: Final = frozenset({
    "InvalidOrder", "RefusedOrder", "JobIdTaken", "InvalidJobTransition", "InvalidRetentionDays", "UnknownPolicy",
    "DagsterInvalidConfigError",
})  # fmt: skip
_EMBEDDING_ERRORS: Final = frozenset({"EmbeddingError", "EmbeddingRefused", "BudgetSpent", "ModelRefused"})
_SITE_REASONS: Final = frozenset({"site_unreachable", "disallowed"})


class Kind(Enum):
    """Whose matter a failure is."""

    SITE = "site"
    ORDER = "order"
    PLATFORM = "platform"


@dataclass(frozen=True, slots=True)
class Topic:
    """Which alert, and which episode of it."""

    alert: str
    episode: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed run, as far as an alert needs it.

    Attributes:
        run_id: its id.
        job_name: of Dagster.
        topic: what it is about.
        tags: of the run.
        at: when it failed.
        message: why, in the words of the op that failed.
        errors: names of the exceptions, the outermost first.
        finish_reason: of its scrape job, where it has one.
        customer_id: of its scrape job.
        job_completed: its scrape job was completed all the same.
    """

    run_id: str
    job_name: str
    topic: Topic
    tags: Mapping[str, str]
    at: datetime
    message: str
    errors: tuple[str, ...] = ()
    finish_reason: str | None = None
    customer_id: UUID | None = None
    job_completed: bool = False


def topic_of(job_name: str, tags: Mapping[str, str], run_config: object) -> Topic:
    """What a run of this job is about. A run that only looks says nothing of those that remove."""
    if job_name in _REMOVING_JOBS and not _removes(run_config):
        return Topic(RUN_FAILED, f"{job_name} (dry run)")
    policy = job_name.removeprefix("cleanup_")
    if policy != job_name and policy in POLICIES:
        return Topic(CLEANUP_FAILED, policy)
    if job_name == CRAWL_JOB and tags.get(TAG_CUSTOMER) and tags.get(TAG_DOMAIN):
        return Topic(CRAWL_FAILED, f"{tags[TAG_CUSTOMER]}/{tags[TAG_DOMAIN]}")
    return Topic(RUN_FAILED, job_name)


def _removes(run_config: object) -> bool:
    """True if some op of the run is told to remove: `dry_run` is the default."""
    if not isinstance(run_config, Mapping):
        return False
    return run_config.get("dry_run") is False or any(_removes(value) for value in run_config.values())


def topic_of_run(run: dg.DagsterRun) -> Topic:
    """What a run is about."""
    return topic_of(run.job_name, run.tags, run.run_config)


def kind_of(failure: Failure) -> Kind:
    """Whose matter it is: by the job's finish reason and the exceptions' names, never by the words of an error."""
    names = set(failure.errors)
    if failure.finish_reason in _SITE_REASONS or names & _SITE_ERRORS:
        return Kind.SITE
    if names & _ORDER_ERRORS:
        return Kind.ORDER
    return Kind.PLATFORM


def alert_for(failure: Failure) -> Alert:
    """The alert of a failed run."""
    topic = failure.topic
    kind = kind_of(failure)
    if kind is Kind.PLATFORM:
        removes = failure.job_name in _REMOVING_JOBS and not topic.episode.endswith("(dry run)")
        is_harmless = failure.job_completed and not _lacks_vectors(failure)
        severity = "critical" if removes else "info" if is_harmless else "warning"
    else:
        severity = "info"
    return Alert(
        alert=topic.alert,
        episode=topic.episode,
        severity=severity,
        message=f"{f'{failure.job_name} of {topic.episode}' if topic.alert == CRAWL_FAILED else topic.episode} "
        f"failed: {failure.message}",
        what_to_do=_what_to_do(failure, topic, kind),
        # A customer reads what is about its own site, and nothing of the platform's insides.
        customer_id=failure.customer_id if kind is Kind.SITE else None,
        run_id=failure.run_id,
        details={
            "job": failure.job_name,
            "kind": kind.value,
            "job_id": failure.tags.get(TAG_JOB),
            "customer": failure.tags.get(TAG_CUSTOMER),
            "domain": failure.tags.get(TAG_DOMAIN),
            "finish_reason": failure.finish_reason,
        },
        occurrence=failure.run_id,
        at=failure.at,
    )


def _lacks_vectors(failure: Failure) -> bool:
    """True if what failed is the embedding of pages that are stored."""
    return not _EMBEDDING_ERRORS.isdisjoint(failure.errors)


def _what_to_do(failure: Failure, topic: Topic, kind: Kind) -> str:
    if kind is Kind.SITE:
        return "Open the site in a browser, and check the domain in the customer's configuration."
    if kind is Kind.ORDER:
        return "Correct the run's configuration as the message says, and launch it again."
    if topic.alert == CLEANUP_FAILED:
        return f"Read the run's log, then run `omniops cleanup {topic.episode}`: it goes on where it stopped."
    job_id = failure.tags.get(TAG_JOB)
    if _lacks_vectors(failure):
        return "Mend what the message says. `omniops embed --missing`, or the night's run, does the rest."
    what = "Read the run's log, and launch the job again when the cause is mended."
    if failure.job_completed:
        what = f"Nothing: job {job_id} was completed before its run ended."
    elif failure.job_name == CRAWL_JOB and job_id:
        what = f"Read the run's log. If job {job_id} is unfinished, `omniops crawl --job-id` resumes it."
    return what


# --- reading ----------------------------------------------------------------------------------------------------


def read_failure(instance: dg.DagsterInstance, engine: Engine, run: dg.DagsterRun, at: datetime) -> Failure:
    """What there is to know of a failed run.

    Raises:
        DBAPIError: the job's row cannot be read.
    """
    message, errors = _why(instance, run.run_id)
    finish_reason, customer_id, completed = None, None, False
    job_id = run.tags.get(TAG_JOB)
    if job_id:
        with engine.connect() as connection:
            row = connection.execute(
                text("SELECT run_id, status, finish_reason, customer_id FROM scrape_jobs WHERE job_id = :job_id"),
                {"job_id": job_id},
            ).one_or_none()
        if row is not None:
            customer_id = row.customer_id
            completed = row.status == "completed"
            # Another run may have had the job since.
            finish_reason = row.finish_reason if row.run_id == run.run_id else None
    return Failure(
        run_id=run.run_id,
        job_name=run.job_name,
        topic=topic_of_run(run),
        tags=run.tags,
        at=at,
        message=message,
        errors=errors,
        finish_reason=finish_reason,
        customer_id=customer_id,
        job_completed=completed,
    )


def _why(instance: dg.DagsterInstance, run_id: str) -> tuple[str, tuple[str, ...]]:
    """Why a run failed: the words of the first op that did, else those of the run; and the exceptions' names."""
    types = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    message = ""
    for record in instance.get_records_for_run(run_id, of_type=types).records:
        event = record.event_log_entry.dagster_event
        if event is None:
            continue
        if event.event_type is dg.DagsterEventType.STEP_FAILURE:
            data = event.step_failure_data
            names = tuple(_names(data.error))
            if data.user_failure_data is not None and data.user_failure_data.description:
                return _short(data.user_failure_data.description), names
            if data.error is not None:
                return _short(data.error.message), names
        else:
            message = message or event.message or ""
    return _short(message or "the run ended without a word"), ()


def _names(error: Any) -> Iterator[str]:
    """Names of an exception and of what caused it."""
    for _ in range(20):
        if error is None:
            return
        if error.cls_name:
            yield error.cls_name
        error = error.cause or error.context


def _short(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= _MAX_MESSAGE else f"{line[:_MAX_MESSAGE]} …"


# --- doing ------------------------------------------------------------------------------------------------------


def report_failure(alerts: Alerts, instance: dg.DagsterInstance, engine: Engine, run: dg.DagsterRun) -> str:
    """Report a failed run; returns what that did. Again is harmless.

    Raises:
        DBAPIError: the alert cannot be written.
    """
    if run.tags.get(_WILL_RETRY_TAG, "").lower() == "true":
        return "retried"
    record = instance.get_run_record_by_id(run.run_id)
    at = _ended(record) if record is not None else datetime.now(UTC)
    outcome = alerts.open(alert_for(read_failure(instance, engine, run, at))).outcome
    if outcome != "known":
        topic = topic_of_run(run)
        later = _success_after(instance, run, topic, at)
        if later is not None:
            alerts.close(topic.alert, topic.episode, unless_seen_after=later)
    return outcome


def _ended(record: dg.RunRecord) -> datetime:
    if record.end_time is not None:
        return datetime.fromtimestamp(record.end_time, UTC)
    moment = record.update_timestamp
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _success_after(instance: dg.DagsterInstance, run: dg.DagsterRun, topic: Topic, at: datetime) -> datetime | None:
    """When the same succeeded, if that was after this failure: what is told late must not stay open for ever."""
    tags = {name: run.tags[name] for name in (TAG_CUSTOMER, TAG_DOMAIN) if name in run.tags}
    filters = dg.RunsFilter(job_name=run.job_name, statuses=[Status.SUCCESS], tags=tags)
    for found in instance.get_run_records(filters=filters, limit=5):
        if topic in topics_ended_by(found.dagster_run) and _ended(found) > at:
            return _ended(found)
    return None


def topics_ended_by(run: dg.DagsterRun) -> list[Topic]:
    """What a run's success ends: what it is about, and for a crawl also the runs that were refused without a site.

    A cleanup's alert ends when `retention_runs` says so, in `cleanup_failure_sensor`.
    """
    topic = topic_of_run(run)
    topics = [] if topic.alert == CLEANUP_FAILED else [topic]
    return [*topics, Topic(RUN_FAILED, CRAWL_JOB)] if topic.alert == CRAWL_FAILED else topics


def report_success(alerts: Alerts, run: dg.DagsterRun, at: datetime) -> int:
    """Close what the run's success ends; returns how many episodes that were."""
    ended = 0
    for topic in topics_ended_by(run):
        ended += alerts.close(topic.alert, topic.episode, unless_seen_after=at) is not None
    return ended


@dataclass(frozen=True, slots=True)
class Followed:
    """What looking at the ended runs did."""

    runs: int
    opened: int
    closed: int


def follow_runs(
    alerts: Alerts, engine: Engine, instance: dg.DagsterInstance, job_names: Sequence[str] | None
) -> Followed:
    """Look at the runs that ended since the last time: report failures that were not, close what succeeded.

    Args:
        alerts: the episodes.
        engine: where the watermark stands.
        instance: Dagster's.
        job_names: jobs of this code location; None: all.

    Raises:
        DBAPIError: something cannot be read or written; the watermark stays, and the next tick does it again.
    """
    with engine.begin() as connection:
        # A new installation begins now: what failed before it looked is no news.
        since = read_watermark(connection, WATERMARK)
    records = instance.get_run_records(
        filters=dg.RunsFilter(statuses=[Status.FAILURE, Status.SUCCESS], updated_after=since - OVERLAP),
        limit=MAX_RUNS,
        order_by="update_timestamp",
        ascending=True,
    )
    records = sorted(records, key=_ended)
    opened = closed = 0
    is_open = set(alerts.open_episodes(*RECOVERABLE))
    for record in records:
        run = record.dagster_run
        if job_names is not None and run.job_name not in job_names:
            continue
        if run.status is Status.FAILURE:
            # A run of the command line has told its person already.
            if run.remote_job_origin is None:
                continue
            if report_failure(alerts, instance, engine, run) in ("opened", "reopened"):
                opened += 1
            topic = topic_of_run(run)
            is_open.add((topic.alert, topic.episode))
        elif is_open & {(topic.alert, topic.episode) for topic in topics_ended_by(run)}:
            closed += report_success(alerts, run, _ended(record))
    if records:
        newest = max(
            (r.update_timestamp if r.update_timestamp.tzinfo else r.update_timestamp.replace(tzinfo=UTC))
            for r in records
        )
        with engine.begin() as connection:
            advance_watermark(connection, WATERMARK, newest)
    return Followed(len(records), opened, closed)


@dg.run_failure_sensor(
    minimum_interval_seconds=FAILURE_INTERVAL_SECONDS,
    # Without it nobody hears of a run that failed at night.
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A failed run opens an alert, or counts one more of its episode: a site, a policy, a job.",
)
def run_failure_alerts(context: dg.RunFailureSensorContext, postgres: PostgresResource) -> None:
    """Report the run that failed."""
    outcome = report_failure(alerts_of(postgres), context.instance, postgres.engine(), context.dagster_run)
    context.log.info("run %s: %s", context.dagster_run.run_id, outcome)


@dg.sensor(
    minimum_interval_seconds=RECOVERY_INTERVAL_SECONDS,
    # Without it an alert of a failed run would stay open for ever.
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="The next success closes the alert of a failed run. Failures that could not be reported are, now.",
)
def run_recovery_sensor(context: dg.SensorEvaluationContext, postgres: PostgresResource) -> dg.SkipReason:
    """Follow the runs that ended."""
    repository = context.repository_def
    names = None if repository is None else repository.job_names
    done = follow_runs(alerts_of(postgres), postgres.engine(), context.instance, names)
    return dg.SkipReason(f"{done.runs} runs looked at: {done.opened} alerts opened, {done.closed} closed")
