"""The outbox: messages that wait in `alert_deliveries` are sent, at least once each, and a bounded number of times.

A message is claimed before it is sent: its attempts are counted up and it is put off for as long as a lease. Whoever
dies in between leaves it to the next flush. Claims pass over what another program has claimed (SKIP LOCKED).

An endpoint's messages go one after the other, and the endpoints beside each other: one that hangs holds up neither
the others nor, beyond the deadline, the caller. After a failure an endpoint is left alone until the next flush.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from resources.alerts.webhooks import ATTEMPT_SECONDS, Attempt, delivery_id, payload, send, session

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiohttp
    from sqlalchemy import Engine

    from resources.alerts.endpoints import AlertSettings, Endpoint

logger = logging.getLogger(__name__)

# With the waits below: about an hour and a half.
MAX_ATTEMPTS: Final = 10
_FIRST_WAIT: Final = 15.0
_LONGEST_WAIT: Final = 1_800.0
# Longer than an attempt: a claimed message belongs to its claimer until then.
LEASE_SECONDS: Final = 60.0
FLUSH_SECONDS: Final = 20.0
# Less than that is not worth beginning.
_SHORTEST_ATTEMPT: Final = 0.5

# A message to nobody (its url was taken out of the settings) is given up a day later: another program may have other
# settings.
_GIVE_UP = text("""
    UPDATE omniops_meta.alert_deliveries SET gave_up_at = now(),
        last_error = CASE WHEN attempts >= :most THEN coalesce(last_error, 'no answer')
                          ELSE 'the endpoint is not configured any more' END
    WHERE delivered_at IS NULL AND gave_up_at IS NULL AND next_attempt_at <= now()
      AND (attempts >= :most OR (endpoint <> ALL (CAST(:known AS text[])) AND created_at < now() - interval '1 day'))
    RETURNING id, alert_id, endpoint, last_error
""")

# A `closed` follows its `opened`.
_CLAIM = text("""
    WITH chosen AS (
        SELECT d.id FROM omniops_meta.alert_deliveries AS d
        WHERE d.endpoint = :endpoint AND d.delivered_at IS NULL AND d.gave_up_at IS NULL
          AND d.next_attempt_at <= now() AND d.attempts < :most
          AND NOT (d.event = 'closed' AND EXISTS (
              SELECT 1 FROM omniops_meta.alert_deliveries AS o
              WHERE o.alert_id = d.alert_id AND o.endpoint = d.endpoint AND o.event = 'opened'
                AND o.delivered_at IS NULL AND o.gave_up_at IS NULL))
        ORDER BY d.id LIMIT 1 FOR UPDATE OF d SKIP LOCKED
    ), claimed AS (
        UPDATE omniops_meta.alert_deliveries AS d
        SET attempts = d.attempts + 1, next_attempt_at = now() + make_interval(secs => :lease)
        FROM chosen WHERE d.id = chosen.id
        RETURNING d.id, d.alert_id, d.event, d.attempts
    )
    SELECT k.id AS delivery, k.event, k.attempts, a.id, a.alert, a.episode, a.severity, a.message, a.what_to_do,
           c.slug AS customer, a.run_id, a.opened_at, a.last_seen_at, a.closed_at, a.occurrences, a.details
    FROM claimed AS k JOIN alert_history AS a ON a.id = k.alert_id LEFT JOIN customers AS c ON c.id = a.customer_id
""")

# Fenced by the attempt: one whose lease ran out does not overwrite what the next one found.
_DELIVERED = text("""
    UPDATE omniops_meta.alert_deliveries SET delivered_at = now(), last_error = NULL
    WHERE id = :id AND delivered_at IS NULL
""")
_FAILED = text("""
    UPDATE omniops_meta.alert_deliveries SET last_error = :error,
        next_attempt_at = now() + make_interval(secs => :wait),
        gave_up_at = CASE WHEN :give_up THEN now() END
    WHERE id = :id AND attempts = :attempts AND delivered_at IS NULL
""")


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush did: messages delivered, attempts that failed, messages given up."""

    delivered: int = 0
    failed: int = 0
    gave_up: int = 0

    def __add__(self, other: Flushed) -> Flushed:
        return Flushed(self.delivered + other.delivered, self.failed + other.failed, self.gave_up + other.gave_up)


def wait_after(attempts: int, retry_after: float | None, jitter: Callable[[], float] = random.random) -> float:
    """Seconds until the next attempt: doubled each time, with jitter, and never before the receiver asked for.

    Args:
        attempts: made so far, 1 or more.
        retry_after: what the receiver asked for.
        jitter: 0 to 1.
    """
    longest = min(_FIRST_WAIT * 2.0 ** (min(attempts, 30) - 1), _LONGEST_WAIT)
    return max(longest * (0.5 + jitter() / 2), retry_after or 0.0)


def flush(
    engine: Engine,
    settings: AlertSettings,
    *,
    deadline_seconds: float = FLUSH_SECONDS,
    attempt_seconds: float = ATTEMPT_SECONDS,
) -> Flushed:
    """Send what is due, within the deadline. For a thread without a running event loop.

    Raises:
        DBAPIError: the database cannot be read or written; what was sent and not recorded is sent again.
    """
    gave_up = _give_up(engine, settings)
    if not settings.endpoints:
        return gave_up
    until = time.monotonic() + deadline_seconds
    return gave_up + asyncio.run(_flush(engine, settings, until, attempt_seconds))


def _give_up(engine: Engine, settings: AlertSettings) -> Flushed:
    shown = {endpoint.key: endpoint.shown for endpoint in settings.endpoints}
    with engine.begin() as connection:
        rows = connection.execute(_GIVE_UP, {"most": MAX_ATTEMPTS, "known": list(shown)}).all()
    for row in rows:
        logger.error(
            "the message of alert %s to %s is given up: %s",
            row.alert_id, shown.get(row.endpoint, "an endpoint that is not configured"), row.last_error,
        )  # fmt: skip
    return Flushed(gave_up=len(rows))


async def _flush(engine: Engine, settings: AlertSettings, until: float, attempt_seconds: float) -> Flushed:
    async with session(allow_private=settings.allow_private) as client:
        done = await asyncio.gather(
            *(_flush_endpoint(engine, settings, endpoint, client, until, attempt_seconds)
              for endpoint in settings.endpoints),
            return_exceptions=True,
        )  # fmt: skip
    total = Flushed()
    errors = []
    for result in done:
        if isinstance(result, BaseException):
            errors.append(result)
        else:
            total += result
    if errors:
        # Each endpoint had its turn; the first error says what is wrong with the database.
        raise errors[0]
    return total


async def _flush_endpoint(
    engine: Engine,
    settings: AlertSettings,
    endpoint: Endpoint,
    client: aiohttp.ClientSession,
    until: float,
    attempt_seconds: float,
) -> Flushed:
    total = Flushed()
    while (left := until - time.monotonic()) > _SHORTEST_ATTEMPT:
        claimed = await asyncio.to_thread(_claim, engine, endpoint)
        if claimed is None:
            break
        event, delivery = claimed["event"], claimed["delivery"]
        name = delivery_id(claimed["id"], claimed["opened_at"], endpoint.key, event)
        attempt = await send(
            client,
            endpoint,
            payload(claimed, event, name, settings.ui_url),
            name,
            settings.secret,
            timeout_seconds=min(attempt_seconds, left),
        )
        outcome = await asyncio.to_thread(_record, engine, delivery, claimed["attempts"], attempt)
        total += outcome
        if not attempt.delivered:
            logger.log(
                logging.ERROR if outcome.gave_up else logging.INFO,
                "the message of alert %s to %s did not arrive (attempt %d of %d%s): %s",
                claimed["id"], endpoint.shown, claimed["attempts"], MAX_ATTEMPTS,
                ", given up" if outcome.gave_up else "", attempt.error,
            )  # fmt: skip
            break
    return total


def _claim(engine: Engine, endpoint: Endpoint) -> dict[str, Any] | None:
    with engine.begin() as connection:
        row = (
            connection.execute(_CLAIM, {"endpoint": endpoint.key, "most": MAX_ATTEMPTS, "lease": LEASE_SECONDS})
            .mappings()
            .one_or_none()
        )
    return None if row is None else dict(row)


def _record(engine: Engine, delivery: int, attempts: int, attempt: Attempt) -> Flushed:
    with engine.begin() as connection:
        if attempt.delivered:
            connection.execute(_DELIVERED, {"id": delivery})
            return Flushed(delivered=1)
        give_up = attempt.gone or attempts >= MAX_ATTEMPTS
        connection.execute(
            _FAILED,
            {
                "id": delivery,
                "attempts": attempts,
                "error": attempt.error,
                "wait": wait_after(attempts, attempt.retry_after),
                "give_up": give_up,
            },
        )
    return Flushed(failed=1, gave_up=int(give_up))
