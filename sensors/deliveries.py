"""`alert_delivery_sensor`: what waits in the outbox is sent.

No other sensor talks to a receiver: they write the alert and its messages in one transaction and are done, however
slow a receiver is. This one has a deadline for all receivers together.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the sensor's own.
"""

from typing import Final

import dagster as dg

from resources.alerts import AlertSettings, flush
from resources.postgres.resource import PostgresResource
from resources.settings import Settings

INTERVAL_SECONDS: Final = 15


@dg.sensor(
    minimum_interval_seconds=INTERVAL_SECONDS,
    # Without it alerts are only rows that nobody reads.
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends the messages of alerts to OMNIOPS_ALERT_WEBHOOKS, at least once each, with backoff.",
)
def alert_delivery_sensor(context: dg.SensorEvaluationContext, postgres: PostgresResource) -> dg.SkipReason:
    """Send what is due."""
    settings = AlertSettings.of(Settings.from_environment())
    done = flush(postgres.engine(), settings)
    if done.failed or done.gave_up:
        context.log.warning("%d messages did not arrive, %d are given up", done.failed, done.gave_up)
    words = f"{done.delivered} delivered, {done.failed} failed, {done.gave_up} given up"
    if not settings.endpoints:
        words = "OMNIOPS_ALERT_WEBHOOKS names no receiver: alerts are kept in alert_history alone"
    return dg.SkipReason("; ".join([words, *settings.problems]))
