"""Episodes: an alert is one row of `alert_history` from the moment it begins to the moment it is over.

Reporting what is known already counts an occurrence and tells nobody. The row and the messages that it causes
(`alert_deliveries`) are written in one transaction, so a program that dies right after it has still told everybody,
once another one sends what is waiting. Two programs that report the same thing at once wait for each other on an
advisory lock of the episode; the unique index on open episodes says the same.

An episode that comes back within `settle_seconds` of its end goes on instead of beginning again. The message that it
is over waits for that time, so receivers hear of a flapping alert once, and then what became of it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from resources.postgres.jobs import clean_message

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from resources.alerts.endpoints import AlertSettings

logger = logging.getLogger(__name__)

SEVERITIES: Final = ("info", "warning", "critical")

# Occurrences that a row remembers by name, so that one that is reported again is not counted again.
_REMEMBERED: Final = 50
_MAX_DETAILS: Final = 16_384


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that somebody should know.

    Attributes:
        alert: which, for example `storage_over_budget`.
        episode: what it is about; there is one open alert for each.
        severity: `info`, `warning` or `critical`.
        message: what happened, in a sentence.
        what_to_do: in a sentence.
        customer_id: whose it is, where it is about a customer's own site or messages: the customer may read it. None
            for what is the platform's.
        run_id: of the Dagster run that it is about.
        details: figures, ready for JSON.
        occurrence: name of this very occurrence (a run's id): reported again it changes nothing, not even a closed
            episode. None: each report is one.
        at: when it happened, where that is not the moment of the report.
    """

    alert: str
    episode: str
    severity: str
    message: str
    what_to_do: str
    customer_id: UUID | None = None
    run_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    occurrence: str | None = None
    at: datetime | None = None

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            msg = f"severity {self.severity!r} is unknown; it is one of {', '.join(SEVERITIES)}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Opened:
    """What reporting an alert did.

    Attributes:
        id: of its row.
        outcome: `opened` (a new episode), `continued` (one more occurrence), `reopened` (it had just been closed), or
            `known` (this very occurrence was reported before).
    """

    id: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Closed:
    """An episode that is over."""

    id: int
    episode: str


_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('omniops alert ' || :alert || chr(31) || :episode, 0))")

_NEWEST = text("""
    SELECT id, closed_at, severity,
           coalesce(closed_at > now() - make_interval(secs => :settle), false) AS unsettled,
           coalesce(jsonb_exists(details -> 'seen', CAST(:occurrence AS text)), false) AS known
    FROM alert_history WHERE alert = :alert AND episode = :episode
    ORDER BY closed_at DESC NULLS FIRST, id DESC LIMIT 1
""")

# An open episode never becomes less severe: it was that bad.
_AGAIN = text("""
    UPDATE alert_history SET
        closed_at = NULL, occurrences = occurrences + 1,
        last_seen_at = greatest(last_seen_at, least(coalesce(CAST(:at AS timestamptz), now()), now())),
        severity = CASE WHEN array_position(CAST(:severities AS text[]), :severity)
                             > array_position(CAST(:severities AS text[]), severity) THEN :severity ELSE severity END,
        message = :message, what_to_do = :what_to_do, run_id = coalesce(:run_id, run_id),
        customer_id = coalesce(CAST(:customer_id AS uuid), customer_id),
        details = CAST(:details AS jsonb) || jsonb_build_object('seen', (
            SELECT coalesce(jsonb_agg(s.name ORDER BY s.nth), '[]')
            FROM (SELECT name, nth FROM jsonb_array_elements_text(
                      coalesce(details -> 'seen', '[]') || CAST(:seen AS jsonb)) WITH ORDINALITY AS e (name, nth)
                  ORDER BY nth DESC LIMIT :remembered) AS s))
    WHERE id = :id
""")

_INSERT = text("""
    INSERT INTO alert_history (customer_id, alert, episode, severity, message, what_to_do, run_id, details,
                               opened_at, last_seen_at)
    SELECT CAST(:customer_id AS uuid), :alert, :episode, :severity, :message, :what_to_do, :run_id,
           CAST(:details AS jsonb) || jsonb_build_object('seen', CAST(:seen AS jsonb)), m.moment, m.moment
    FROM (SELECT least(coalesce(CAST(:at AS timestamptz), now()), now()) AS moment) AS m
    RETURNING id
""")

_TELL_OPENED = text("""
    INSERT INTO omniops_meta.alert_deliveries (alert_id, endpoint, event)
    SELECT :id, e.key, 'opened' FROM unnest(CAST(:endpoints AS text[])) AS e (key)
    ON CONFLICT (alert_id, endpoint, event) DO NOTHING
""")

# Told to whom its beginning was told, or will be.
_TELL_CLOSED = text("""
    INSERT INTO omniops_meta.alert_deliveries (alert_id, endpoint, event, next_attempt_at)
    SELECT alert_id, endpoint, 'closed', now() + make_interval(secs => :settle)
    FROM omniops_meta.alert_deliveries WHERE alert_id = :id AND event = 'opened' AND gave_up_at IS NULL
    ON CONFLICT (alert_id, endpoint, event) DO NOTHING
""")

# Waits for one who is claiming such a message in this moment, and then finds it attempted.
_CLOSED_MESSAGES = text("""
    SELECT attempts FROM omniops_meta.alert_deliveries
    WHERE alert_id = :id AND event = 'closed' ORDER BY id FOR UPDATE
""")
_TAKE_BACK_CLOSED = text("DELETE FROM omniops_meta.alert_deliveries WHERE alert_id = :id AND event = 'closed'")

_CLOSE = text("""
    UPDATE alert_history SET closed_at = greatest(now(), opened_at)
    WHERE alert = :alert AND episode = :episode AND closed_at IS NULL
      AND (CAST(:unless_seen_after AS timestamptz) IS NULL OR last_seen_at <= :unless_seen_after)
    RETURNING id, message
""")

_LIST = text("""
    SELECT a.id, a.alert, a.episode, a.severity, a.message, a.what_to_do, c.slug AS customer, a.run_id, a.opened_at,
           a.last_seen_at, a.closed_at, a.occurrences, a.details - 'seen' AS details
    FROM alert_history AS a LEFT JOIN customers AS c ON c.id = a.customer_id
    WHERE a.closed_at IS NULL OR :closed
    ORDER BY a.closed_at IS NOT NULL, a.opened_at DESC, a.id DESC LIMIT :limit
""")


class Alerts:
    """The episodes of one database.

    Args:
        engine: the permanent tier, with service access.
        settings: who is told, and how long an episode settles.
    """

    def __init__(self, engine: Engine, settings: AlertSettings) -> None:
        self._engine = engine
        self._settings = settings

    def open(self, alert: Alert) -> Opened:
        """Report an alert: a new episode, or one more occurrence of it.

        Raises:
            DBAPIError: the database cannot be written; nothing was.
        """
        values = _values(alert)
        with self._engine.begin() as connection:
            connection.execute(_LOCK, {"alert": alert.alert, "episode": alert.episode})
            newest = connection.execute(
                _NEWEST,
                {
                    "alert": alert.alert,
                    "episode": alert.episode,
                    "settle": self._settings.settle_seconds,
                    "occurrence": alert.occurrence,
                },
            ).one_or_none()
            if newest is not None:
                if newest.known:
                    return Opened(newest.id, "known")
                if newest.closed_at is None:
                    connection.execute(_AGAIN, {**values, "id": newest.id})
                    return Opened(newest.id, "continued")
                if newest.unsettled and self._take_back(connection, newest.id):
                    connection.execute(_AGAIN, {**values, "id": newest.id})
                    return Opened(newest.id, "reopened")
            made: int = connection.execute(_INSERT, values).scalar_one()
            connection.execute(
                _TELL_OPENED, {"id": made, "endpoints": [endpoint.key for endpoint in self._settings.endpoints]}
            )
        logger.warning("alert %s opened (%s): %s: %s", alert.alert, alert.episode, alert.severity, values["message"])
        return Opened(made, "opened")

    @staticmethod
    def _take_back(connection: Connection, alert_id: int) -> bool:
        """True if nobody has been told that the episode is over; and then nobody will be."""
        if any(connection.scalars(_CLOSED_MESSAGES, {"id": alert_id})):
            return False
        connection.execute(_TAKE_BACK_CLOSED, {"id": alert_id})
        return True

    def close(self, alert: str, episode: str, *, unless_seen_after: datetime | None = None) -> Closed | None:
        """Say that an episode is over; None if it is not open.

        Args:
            alert: which.
            episode: what it is about.
            unless_seen_after: leave it open if it happened again after this moment.
        """
        with self._engine.begin() as connection:
            connection.execute(_LOCK, {"alert": alert, "episode": episode})
            row = connection.execute(
                _CLOSE, {"alert": alert, "episode": episode, "unless_seen_after": unless_seen_after}
            ).one_or_none()
            if row is None:
                return None
            connection.execute(_TELL_CLOSED, {"id": row.id, "settle": self._settings.settle_seconds})
        logger.info("alert %s is over (%s): %s", alert, episode, row.message)
        return Closed(row.id, episode)

    def open_episodes(self, *alerts: str) -> dict[tuple[str, str], datetime]:
        """The open episodes of these alerts, by alert and episode, with the moment each was seen last."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                text("""
                    SELECT alert, episode, last_seen_at FROM alert_history
                    WHERE closed_at IS NULL AND alert = ANY (:alerts)
                """),
                {"alerts": list(alerts)},
            )
            return {(row.alert, row.episode): row.last_seen_at for row in rows}

    def list(self, *, closed: bool = False, limit: int = 50) -> list[dict[str, Any]]:
        """Episodes, open ones first, then the newest first.

        Args:
            closed: those that are over too.
            limit: at most so many.
        """
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(_LIST, {"closed": closed, "limit": limit}).mappings()]


def _values(alert: Alert) -> dict[str, Any]:
    details = json.dumps(_storable(dict(alert.details)))
    if len(details) > _MAX_DETAILS:
        details = json.dumps({"left_out": f"{len(details):,} characters of details"})
    return {
        "alert": alert.alert,
        "episode": alert.episode,
        "severity": alert.severity,
        "severities": list(SEVERITIES),
        "message": clean_message(alert.message),
        "what_to_do": clean_message(alert.what_to_do),
        "customer_id": str(alert.customer_id) if alert.customer_id else None,
        "run_id": alert.run_id,
        "details": details,
        "seen": json.dumps([alert.occurrence] if alert.occurrence else []),
        "remembered": _REMEMBERED,
        "at": alert.at,
    }


def _storable(value: Any) -> Any:
    """What jsonb can hold: no NUL, no half surrogate pairs, no infinities."""
    if isinstance(value, str):
        return value.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_storable(str(name)): _storable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value]
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and value - value == 0:
        return value
    return _storable(str(value))
