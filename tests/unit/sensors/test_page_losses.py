"""When a site has lost too many of its pages at once."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from sensors.page_losses import CompletedJob, judge


@pytest.mark.parametrize(
    ("alive", "removed", "is_alert"),
    [(0, 0, False), (100, 0, False), (50, 50, False), (49, 51, True), (0, 4, False), (0, 5, True), (4, 5, True),
     (5, 5, False), (0, 1_000_000, True)],
)  # fmt: skip
def test_more_than_half_of_a_site_and_more_than_a_handful_is_an_alert(
    alive: int, removed: int, is_alert: bool
) -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    job = CompletedJob("j1", UUID(int=1), "acme", "shop.example", "r-1", now, alive, removed)
    alert = judge(job)
    assert (alert is not None) is is_alert
    if alert is not None:
        assert (alert.episode, alert.occurrence, alert.customer_id) == ("acme/shop.example", "j1", UUID(int=1))
        assert f"lost {removed:,} of {alive + removed:,} pages" in alert.message
