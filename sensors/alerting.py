"""How sensors report: the alerts of the database that they look at, with the settings of the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from resources.alerts import Alert, Alerts, AlertSettings
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resources.postgres.resource import PostgresResource


def alerts_of(postgres: PostgresResource) -> Alerts:
    """The alerts that stand in this database."""
    return Alerts(postgres.engine(), AlertSettings.of(Settings.from_environment()))


@dataclass(frozen=True, slots=True)
class Over:
    """An episode that is over, if it was open."""

    alert: str
    episode: str


def report(alerts: Alerts, findings: Iterable[Alert | Over]) -> tuple[list[str], list[str]]:
    """Open and close what was found; returns the new episodes and those that are over.

    Raises:
        DBAPIError: something cannot be written; what was reported before stays, and again is harmless.
    """
    found = list(findings)
    # Closing what is not open would be a transaction for nothing, at every tick.
    is_open = alerts.open_episodes(*{finding.alert for finding in found})
    opened, over = [], []
    for finding in found:
        name = f"{finding.alert} ({finding.episode})"
        if isinstance(finding, Alert):
            if alerts.open(finding).outcome in ("opened", "reopened"):
                opened.append(name)
        elif (finding.alert, finding.episode) in is_open and alerts.close(finding.alert, finding.episode):
            over.append(name)
    return opened, over


def in_words(opened: list[str], over: list[str]) -> str:
    """One sentence for a tick."""
    if not opened and not over:
        return "nothing new"
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in (("opened", opened), ("over", over)) if names)
