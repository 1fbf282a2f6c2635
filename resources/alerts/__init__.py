"""Alerts: an episode is one row, and one message to each receiver.

What belongs here: episodes (`alert_history`), the outbox of messages (`alert_deliveries`) and the client that sends
them. What does not: what is worth an alert, which the sensors decide.
"""

from resources.alerts.endpoints import AlertSettings, Endpoint
from resources.alerts.episodes import SEVERITIES, Alert, Alerts, Closed, Opened
from resources.alerts.outbox import Flushed, flush
from resources.alerts.webhooks import verify_signature

__all__ = [
    "SEVERITIES",
    "Alert",
    "AlertSettings",
    "Alerts",
    "Closed",
    "Endpoint",
    "Flushed",
    "Opened",
    "flush",
    "verify_signature",
]
