"""Messages to receivers: what they say, how they are signed, when they are tried again. No network, no database."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.alerts.endpoints import AlertSettings, read_endpoints, redact
from resources.alerts.outbox import wait_after
from resources.alerts.webhooks import delivery_id, payload, retry_after, sign, verify_signature
from resources.secret import Secret
from resources.settings import InvalidSetting, Settings

SECRET = Secret("the receivers' secret")
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
STAMP = int(NOW.timestamp())
BODY = b'{"text": "hello"}'


def headers(body: bytes = BODY, stamp: int = STAMP, secret: Secret = SECRET) -> dict[str, str]:
    return {"X-OmniOps-Timestamp": str(stamp), "X-OmniOps-Signature": sign(secret, stamp, body)}


def verified(given_headers: dict[str, str], body: bytes = BODY, now: float = STAMP) -> bool:
    return verify_signature(SECRET, given_headers, body, now=now)


# --- signatures -----------------------------------------------------------------------------------------------


def test_a_signature_is_what_anybody_computes_from_the_documentation() -> None:
    import hashlib
    import hmac

    by_hand = hmac.new(b"the receivers' secret", f"{STAMP}.".encode() + BODY, hashlib.sha256).hexdigest()
    assert sign(SECRET, STAMP, BODY) == f"v1={by_hand}"


def test_what_is_ours_and_fresh_is_believed_whatever_the_case_of_the_headers() -> None:
    assert verified(headers())
    assert verified({name.lower(): value for name, value in headers().items()})
    assert verified(headers(), now=STAMP + 299)


@pytest.mark.parametrize(
    ("given_headers", "body", "now"),
    [
        ({}, BODY, STAMP),
        (headers(), BODY + b" ", STAMP),
        (headers(secret=Secret("another")), BODY, STAMP),
        (headers(), BODY, STAMP + 301),
        (headers(), BODY, STAMP - 301),
        ({**headers(), "X-OmniOps-Timestamp": str(STAMP + 1)}, BODY, STAMP),
        ({**headers(), "X-OmniOps-Timestamp": "9" * 400}, BODY, STAMP),
        ({**headers(), "X-OmniOps-Timestamp": "²"}, BODY, STAMP),
        ({**headers(), "X-OmniOps-Timestamp": "-1"}, BODY, STAMP),
        ({**headers(), "X-OmniOps-Signature": ""}, BODY, STAMP),
        ({**headers(), "X-OmniOps-Signature": "v1=é\ud800"}, BODY, STAMP),
        ({**headers(), "X-OmniOps-Signature": headers()["X-OmniOps-Signature"].upper()}, BODY, STAMP),
    ],
)
def test_what_is_changed_old_or_unsigned_is_refused(given_headers: dict[str, str], body: bytes, now: float) -> None:
    assert not verified(given_headers, body, now)


@given(body=st.binary(max_size=200), secret=st.text(min_size=1, max_size=40), stamp=st.integers(0, 10**12))
def test_every_body_is_verified_by_its_own_signature_alone(body: bytes, secret: str, stamp: int) -> None:
    key = Secret(secret)
    given_headers = {"x-omniops-timestamp": str(stamp), "x-omniops-signature": sign(key, stamp, body)}
    assert verify_signature(key, given_headers, body, now=stamp)
    assert not verify_signature(Secret(secret + "x"), given_headers, body, now=stamp)
    assert not verify_signature(key, given_headers, body + b"x", now=stamp)


# --- what it says ---------------------------------------------------------------------------------------------


def row(**changes: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "alert": "cleanup_failed",
        "episode": "message_queue",
        "severity": "critical",
        "message": "cleanup of message_queue failed: lock timeout",
        "what_to_do": "Run it again.",
        "customer": None,
        "run_id": "r-1",
        "opened_at": NOW,
        "last_seen_at": NOW + timedelta(minutes=3),
        "closed_at": None,
        "occurrences": 2,
        "details": {"policy": "message_queue", "seen": ["r-1"]},
        **changes,
    }


def test_a_message_is_understood_by_slack_and_by_programs() -> None:
    body = payload(row(), "opened", "d-1", "http://ui.example")
    assert body["text"] == "[critical] cleanup of message_queue failed: lock timeout"
    kinds = [block["type"] for block in body["blocks"]]
    assert kinds == ["section", "section", "context"]
    words = json.dumps(body["blocks"])
    for expected in ("Run it again.", "2026-11-24 12:00 UTC", "2 times", "<http://ui.example/runs/r-1|its run>"):
        assert expected in words
    assert (body["event"], body["delivery_id"]) == ("opened", "d-1")
    alert = body["alert"]
    assert alert["run_url"] == "http://ui.example/runs/r-1"
    assert (alert["opened_at"], alert["closed_at"]) == ("2026-11-24T12:00:00+00:00", None)
    assert alert["details"] == {"policy": "message_queue"}


def test_an_end_says_that_it_is_over() -> None:
    body = payload(row(closed_at=NOW + timedelta(hours=1), run_id=None), "closed", "d-2", "http://ui.example")
    assert body["text"].startswith("[over]")
    assert "until 2026-11-24 13:00 UTC" in json.dumps(body["blocks"])
    assert "Run it again." not in json.dumps(body["blocks"])
    assert body["alert"]["run_url"] is None


def test_an_errors_words_are_no_markup_and_wake_nobody() -> None:
    body = payload(row(message="<!channel> & <https://evil.example|log in>" + "x" * 9_000), "opened", "d", "u")
    for shown in (body["text"], body["blocks"][0]["text"]["text"]):
        assert "<!channel>" not in shown
        assert "&lt;!channel&gt; &amp; &lt;https" in shown
        assert len(shown) < 3_000
    assert body["alert"]["message"].startswith("<!channel>")


def test_a_delivery_id_is_the_same_for_every_attempt_and_another_for_everything_else() -> None:
    first = delivery_id(7, NOW, "endpoint", "opened")
    assert first == delivery_id(7, NOW.astimezone(), "endpoint", "opened")
    others = {
        delivery_id(8, NOW, "endpoint", "opened"),
        delivery_id(7, NOW + timedelta(microseconds=1), "endpoint", "opened"),
        delivery_id(7, NOW, "another", "opened"),
        delivery_id(7, NOW, "endpoint", "closed"),
    }
    assert len(others | {first}) == 5


# --- when it is tried again -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("", None), ("0", 0.0), ("17", 17.0), (" 17 ", 17.0), ("86400", 3_600.0), ("9" * 500, 3_600.0),
        ("-5", None), ("soon", None), ("1.5", None), ("Tue, 24 Nov 2026 12:01:00 GMT", 60.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0), ("Tue, 24 Nov 2099 12:00:00 GMT", 3_600.0), ("²", None),
        ("Tue, 99 Nov 2026 12:01:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_honoured_up_to_an_hour(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


def test_waits_double_up_to_half_an_hour_with_jitter() -> None:
    longest = [wait_after(n, None, lambda: 1.0) for n in range(1, 11)]
    assert longest == [15, 30, 60, 120, 240, 480, 960, 1_800, 1_800, 1_800]
    assert [wait_after(n, None, lambda: 0.0) for n in range(1, 11)] == [seconds / 2 for seconds in longest]
    assert wait_after(10_000, None, lambda: 1.0) == 1_800


@given(attempts=st.integers(1, 50), asked=st.floats(0, 3_600), jitter=st.floats(0, 1))
def test_nobody_is_asked_before_the_time_that_it_asked_for(attempts: int, asked: float, jitter: float) -> None:
    assert wait_after(attempts, asked, lambda: jitter) >= asked


# --- settings -------------------------------------------------------------------------------------------------

SLACK = "https://hooks.slack.example/services/T000/B000/XXXX-the-secret"


def test_urls_are_shown_as_scheme_and_host_alone() -> None:
    assert redact(SLACK) == "https://hooks.slack.example"
    assert redact("https://user:pass@hooks.example:8443/x?token=1#f") == "https://hooks.example"
    assert redact("http://[broken") == "(unreadable url)"
    assert redact("file:///etc/passwd") == "(unreadable url)"
    (endpoint,), _ = read_endpoints(Secret(SLACK))
    for shown in (repr(endpoint), str(endpoint), endpoint.key):
        assert "the-secret" not in shown
    assert len(endpoint.key) == 64


def test_a_wrong_url_is_a_problem_that_keeps_no_other_away_and_is_not_repeated() -> None:
    wrong = ["ftp://a.example/tok1", "https:///tok2", "https://a.example:port/tok3", "tok4", "http://[::1/tok5"]
    endpoints, problems = read_endpoints(Secret(", ".join([wrong[0], SLACK, *wrong[1:], SLACK])))
    assert [endpoint.shown for endpoint in endpoints] == ["https://hooks.slack.example"]
    assert len(problems) == 5
    assert problems[1].startswith("url 3 of OMNIOPS_ALERT_WEBHOOKS")
    assert "tok" not in " ".join(problems)


def test_settings_come_from_the_environment_and_show_no_secret() -> None:
    settings = Settings.from_environment(
        {
            "OMNIOPS_ALERT_WEBHOOKS": SLACK,
            "OMNIOPS_ALERT_WEBHOOK_SECRET": "hush-hush",
            "OMNIOPS_ALERT_ALLOW_PRIVATE": "1",
            "OMNIOPS_ALERT_SETTLE_SECONDS": "5",
            "OMNIOPS_UI_URL": "https://dagster.example/",
        }
    )
    alerts = AlertSettings.of(settings)
    assert (alerts.ui_url, alerts.allow_private, alerts.settle_seconds) == ("https://dagster.example", True, 5.0)
    assert alerts.secret == Secret("hush-hush")
    for shown in (repr(settings), repr(alerts), str(alerts)):
        assert "the-secret" not in shown
        assert "hush-hush" not in shown


def test_without_settings_nothing_is_sent_and_no_private_address_is_allowed() -> None:
    alerts = AlertSettings.of(Settings.from_environment({}))
    assert (alerts.endpoints, alerts.secret, alerts.allow_private) == ((), None, False)
    assert alerts.ui_url == "http://127.0.0.1:3000"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMNIOPS_ALERT_ALLOW_PRIVATE", "maybe"),
        ("OMNIOPS_ALERT_SETTLE_SECONDS", "soon"),
        ("OMNIOPS_ALERT_SETTLE_SECONDS", "-1"),
        ("OMNIOPS_ALERT_SETTLE_SECONDS", "nan"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=f"{name} is '{value}'"):
        Settings.from_environment({name: value})
