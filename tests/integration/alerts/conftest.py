"""Receivers, and alerts in a database of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resources.alerts import Alert, Alerts, AlertSettings
from resources.alerts.endpoints import read_endpoints
from resources.secret import Secret
from tests.support.receiver import SECRET, Receiver, serve_receiver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Database


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with serve_receiver() as served:
        yield served


@pytest.fixture
def second() -> Iterator[Receiver]:
    with serve_receiver() as served:
        yield served


def settings_for(*urls: str, allow_private: bool = True, settle_seconds: float = 0.0) -> AlertSettings:
    """As the environment would have them."""
    endpoints, problems = read_endpoints(Secret(" ".join(urls)) if urls else None)
    return AlertSettings(endpoints, problems, SECRET, allow_private, "http://ui.example", settle_seconds)


def alerts_in(database: Database, settings: AlertSettings | None = None) -> Alerts:
    return Alerts(database.engine, settings or settings_for())


def an_alert(**changes: object) -> Alert:
    fields: dict[str, object] = {
        "alert": "storage_over_budget",
        "episode": "database",
        "severity": "warning",
        "message": "the database takes 9 of 10 GiB",
        "what_to_do": "Make room.",
        **changes,
    }
    return Alert(**fields)  # type: ignore[arg-type]
