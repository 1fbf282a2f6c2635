"""What a receiver of alerts gets, how it is signed, and one attempt to send it.

A message is one POST with a JSON body that Slack and its like understand (`text`, `blocks`) and that has the alert's
fields under `alert` for programs. Its headers:

- `X-OmniOps-Delivery`: the same for every attempt at one message. Delivery is at least once: a receiver that must not
  act twice remembers these.
- `X-OmniOps-Timestamp`: seconds since 1970, of this attempt.
- `X-OmniOps-Signature`: `v1=` and the hexadecimal HMAC-SHA256, by `OMNIOPS_ALERT_WEBHOOK_SECRET`, of the timestamp, a
  dot, and the body's bytes. `verify_signature` is what a receiver does with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from resources.crawler.guard import AddressRefused, guarded_connector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resources.alerts.endpoints import Endpoint
    from resources.secret import Secret

DELIVERY_HEADER: Final = "X-OmniOps-Delivery"
TIMESTAMP_HEADER: Final = "X-OmniOps-Timestamp"
SIGNATURE_HEADER: Final = "X-OmniOps-Signature"

# A receiver that has not answered by then may have got it all the same: it is asked again, with the same delivery id.
ATTEMPT_SECONDS: Final = 10.0
# A receiver that says "not before next week" is asked again in an hour.
MAX_RETRY_AFTER_SECONDS: Final = 3_600.0
# A signature that is older than this is a copy.
TOLERANCE_SECONDS: Final = 300.0

# Slack takes 3,000 characters in a section.
_MAX_SHOWN: Final = 2_800
_NAMESPACE: Final = uuid.UUID("a36d9cf5-6f4e-4be5-8ce4-3c46f0d1f0b4")
_SIGNS: Final = {"info": ":information_source:", "warning": ":warning:", "critical": ":rotating_light:"}


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one attempt.

    Attributes:
        delivered: the receiver answered 2xx.
        error: else why not, in words and without the url.
        retry_after: seconds that the receiver asked to wait, an hour at most.
        gone: the receiver said that it will never be there again (410).
    """

    delivered: bool
    error: str | None = None
    retry_after: float | None = None
    gone: bool = False


def delivery_id(alert_id: int, opened_at: datetime, endpoint: str, event: str) -> str:
    """The id of a message to an endpoint: the same for every attempt, another one in every other database."""
    return str(uuid.uuid5(_NAMESPACE, f"{alert_id}|{opened_at.astimezone(UTC).isoformat()}|{endpoint}|{event}"))


def payload(row: Mapping[str, Any], event: str, delivery: str, ui_url: str) -> dict[str, Any]:
    """The body of a message.

    Args:
        row: of `alert_history`, with the customer's slug as `customer`.
        event: `opened` or `closed`.
        delivery: id of the message.
        ui_url: of the Dagster UI.
    """
    run_url = f"{ui_url}/runs/{row['run_id']}" if row["run_id"] else None
    about = f"{row['alert']} ({row['episode']})"
    if event == "opened":
        head = f"{_SIGNS[row['severity']]} *{row['severity']}*: {_shown(row['message'])}"
        plain = f"[{row['severity']}] {row['message']}"
    else:
        head = f":white_check_mark: *over*: {_shown(row['message'])}"
        plain = f"[over] {row['message']}"
    sections = [head]
    if event == "opened" and row["what_to_do"]:
        sections.append(f"*What to do*: {_shown(row['what_to_do'])}")
    facts = [f"{_shown(about)}, since {_time(row['opened_at'])}"]
    if event == "closed" and row["closed_at"]:
        facts.append(f"until {_time(row['closed_at'])}")
    if row["occurrences"] > 1:
        facts.append(f"{row['occurrences']:,} times")
    if run_url:
        facts.append(f"<{run_url}|its run>")
    return {
        # What a phone shows; Slack reads markup here too.
        "text": _shown(plain),
        "blocks": [
            *({"type": "section", "text": {"type": "mrkdwn", "text": section}} for section in sections),
            {"type": "context", "elements": [{"type": "mrkdwn", "text": ", ".join(facts)}]},
        ],
        "event": event,
        "delivery_id": delivery,
        "alert": {
            "id": row["id"],
            "alert": row["alert"],
            "episode": row["episode"],
            "severity": row["severity"],
            "message": row["message"],
            "what_to_do": row["what_to_do"],
            "customer": row["customer"],
            "opened_at": _iso(row["opened_at"]),
            "last_seen_at": _iso(row["last_seen_at"]),
            "closed_at": _iso(row["closed_at"]),
            "occurrences": row["occurrences"],
            "run_id": row["run_id"],
            "run_url": run_url,
            "details": {name: value for name, value in row["details"].items() if name != "seen"},
        },
    }


def _shown(text: str) -> str:
    """Text that is no markup: an error's words come from anywhere, and `<!channel>` in them would wake everybody."""
    short = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} …"
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


# --- signatures -----------------------------------------------------------------------------------------------


def sign(secret: Secret, timestamp: int, body: bytes) -> str:
    """The value of the signature's header."""
    key = str(secret.reveal()).encode("utf-8", "surrogatepass")
    return "v1=" + hmac.new(key, b"%d.%b" % (timestamp, body), hashlib.sha256).hexdigest()


def verify_signature(
    secret: Secret,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float | None = None,
    tolerance_seconds: float = TOLERANCE_SECONDS,
) -> bool:
    """What a receiver does with a message: True if it is ours and fresh.

    Args:
        secret: the value of `OMNIOPS_ALERT_WEBHOOK_SECRET`.
        headers: of the request, whatever the case of their names.
        body: as it came, not parsed and written again.
        now: seconds since 1970; the clock's by default.
        tolerance_seconds: an older (or a future) message is refused, since it may be a copy.
    """
    given = {name.lower(): value for name, value in headers.items()}
    stamp = given.get(TIMESTAMP_HEADER.lower(), "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16):
        return False
    moment = time.time() if now is None else now
    fresh = abs(moment - int(stamp)) <= tolerance_seconds
    # Compared in constant time, and whether or not it is fresh.
    signature = given.get(SIGNATURE_HEADER.lower(), "").encode("utf-8", "surrogatepass")
    return hmac.compare_digest(sign(secret, int(stamp), body).encode(), signature) and fresh


# --- sending --------------------------------------------------------------------------------------------------


def session(*, allow_private: bool) -> aiohttp.ClientSession:
    """A session for messages: guarded addresses, no proxy of the environment, no cookies. Needs a running loop."""
    return aiohttp.ClientSession(
        connector=guarded_connector(allow_private=allow_private, limit=0),
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "OmniOps-Alerts/1"},
    )


async def send(
    client: aiohttp.ClientSession,
    endpoint: Endpoint,
    body: Mapping[str, Any],
    delivery: str,
    secret: Secret | None,
    *,
    timeout_seconds: float = ATTEMPT_SECONDS,
) -> Attempt:
    """Try once. Never raises for what a receiver or the network does; what it says names no url."""
    data = json.dumps(body).encode()
    stamp = int(time.time())
    headers = {"Content-Type": "application/json", DELIVERY_HEADER: delivery, TIMESTAMP_HEADER: str(stamp)}
    if secret:
        headers[SIGNATURE_HEADER] = sign(secret, stamp, data)
    try:
        async with (
            # Around all of it: aiohttp's own total does not count a name that does not resolve.
            asyncio.timeout(timeout_seconds),
            client.post(endpoint.url.reveal(), data=data, headers=headers, allow_redirects=False) as answer,
        ):
            return _judge(answer.status, answer.headers)
    except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError; a bad url a ValueError
        return Attempt(False, f"{endpoint.shown}: {_reason(error, timeout_seconds)}")


def _judge(status: int, headers: Mapping[str, str]) -> Attempt:
    if 200 <= status < 300:
        return Attempt(True)
    if 300 <= status < 400:
        return Attempt(False, f"answered {status}: redirects are not followed, name the receiver's own url")
    wait = retry_after(headers.get("Retry-After"), datetime.now(UTC)) if status in (429, 503) else None
    return Attempt(False, f"answered {status}", wait, gone=status == 410)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a `Retry-After` asks for (a number or a date), at most an hour; None if it cannot be read."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        # More digits than this are more than an hour anyway.
        seconds = float(value[:9]) if len(value) <= 9 else MAX_RETRY_AFTER_SECONDS
    else:
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, IndexError, TypeError, OverflowError):
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = (moment - now).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _reason(error: BaseException, timeout_seconds: float) -> str:  # noqa: PLR0911 - one for each kind
    """Why there was no answer, in words of our own: a library's text may have the url in it."""
    refused = _refused(error)
    if refused is not None:
        return "its address is not a public one, and OMNIOPS_ALERT_ALLOW_PRIVATE is not set"
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_seconds:.0f} s"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name has no address"
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return "its certificate or TLS cannot be accepted"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection ({error.strerror or 'refused'})"
    if isinstance(error, ValueError):
        return "its url cannot be used"
    return f"the connection broke ({type(error).__name__})"


def _refused(error: BaseException) -> AddressRefused | None:
    cause: BaseException | None = getattr(error, "os_error", error)
    for _ in range(5):
        if cause is None or isinstance(cause, AddressRefused):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
