"""Where alerts are sent to: the urls of `OMNIOPS_ALERT_WEBHOOKS`, which are secrets.

Whoever knows the url of a chat's webhook can write there, so a url is shown as scheme and host alone, and stored as a
hash: in logs, in rows, in errors, and in what commands print.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from resources.secret import Secret

if TYPE_CHECKING:
    from resources.settings import Settings

_SEPARATORS = re.compile(r"[\s,]+")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One receiver.

    Attributes:
        key: SHA-256 of the url, in hexadecimal: what stands in `alert_deliveries`.
        shown: scheme and host, for people.
        url: the whole of it.
    """

    key: str
    shown: str
    url: Secret = field(repr=False)


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """How alerts leave the platform.

    Attributes:
        endpoints: those whose url can be used.
        problems: a sentence for each url that cannot, without the url.
        secret: signs what is sent; None: nothing is signed.
        allow_private: receivers on private addresses are allowed, for a person's own machine.
        ui_url: of the Dagster UI, for links, without a slash at its end.
        settle_seconds: an episode that comes back so soon after it was closed goes on, and nobody is told twice.
    """

    endpoints: tuple[Endpoint, ...]
    problems: tuple[str, ...]
    secret: Secret | None
    allow_private: bool
    ui_url: str
    settle_seconds: float

    @classmethod
    def of(cls, settings: Settings) -> AlertSettings:
        """Read them from the settings. A url that is wrong is a problem to be reported, and keeps no other away."""
        endpoints, problems = read_endpoints(settings.alert_webhooks)
        return cls(
            endpoints=endpoints,
            problems=problems,
            secret=settings.alert_webhook_secret,
            allow_private=settings.alert_allow_private,
            ui_url=settings.ui_url.rstrip("/"),
            settle_seconds=settings.alert_settle_seconds,
        )


def redact(url: str) -> str:
    """Scheme and host of a url; nothing else of it, not even its port."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        return "(unreadable url)"
    return f"{parts.scheme}://{host}"


def read_endpoints(urls: Secret | None) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
    """Endpoints of a list of urls, separated by spaces or commas, each once; and what is wrong with the others."""
    endpoints: dict[str, Endpoint] = {}
    problems = []
    words = [word for word in _SEPARATORS.split(urls.reveal() if urls else "") if word]
    for number, url in enumerate(words, 1):
        reason = _problem(url)
        if reason:
            problems.append(f"url {number} of OMNIOPS_ALERT_WEBHOOKS cannot be used: {reason}")
            continue
        key = hashlib.sha256(url.encode()).hexdigest()
        endpoints[key] = Endpoint(key, redact(url), Secret(url))
    return tuple(endpoints.values()), tuple(problems)


def _problem(url: str) -> str | None:
    if not url.isprintable():
        return "it has characters that no url has"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "its host or port cannot be read"
    if parts.scheme not in ("http", "https"):
        return "it must begin with https:// (or http://)"
    if not parts.hostname:
        return "it has no host"
    return None
