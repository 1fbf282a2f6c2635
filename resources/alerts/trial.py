"""A message to every receiver, to see whether it arrives: no alert is made, and nothing is written."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from resources.alerts.webhooks import payload, send, session

if TYPE_CHECKING:
    from resources.alerts.endpoints import AlertSettings, Endpoint


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a message to one receiver; the url is not in it."""

    receiver: str
    delivered: bool
    error: str | None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


def send_trial(settings: AlertSettings) -> list[Trial]:
    """Send it to all of them at once, and tell what came of it. For a thread without a running event loop."""
    return asyncio.run(_send(settings))


async def _send(settings: AlertSettings) -> list[Trial]:
    now = datetime.now(UTC)
    row = {
        "id": 0,
        "alert": "test",
        "episode": "test",
        "severity": "info",
        "message": "This is a test of OmniOps alerts: nothing is wrong.",
        "what_to_do": "Nothing.",
        "customer": None,
        "run_id": None,
        "opened_at": now,
        "last_seen_at": now,
        "closed_at": None,
        "occurrences": 1,
        "details": {},
    }
    async with session(allow_private=settings.allow_private) as client:

        async def try_one(endpoint: Endpoint) -> Trial:
            delivery = str(uuid.uuid4())
            body = payload(row, "opened", delivery, settings.ui_url)
            attempt = await send(client, endpoint, body, delivery, settings.secret)
            return Trial(endpoint.shown, attempt.delivered, attempt.error)

        return list(await asyncio.gather(*(try_one(endpoint) for endpoint in settings.endpoints)))
