"""When a site has lost too many of its pages at once."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from sensors.page_losses import CompletedJob, judge


@pytest.mark.parametrize("held_back", [False, True])
def test_losses_that_were_held_back_are_an_alert(held_back: bool) -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    job = CompletedJob("j1", UUID(int=1), "acme", "shop.example", "r-1", now, 100, 51, held_back)
    alert = judge(job)
    assert (alert is not None) is held_back
    if alert is not None:
        assert (alert.episode, alert.occurrence, alert.customer_id) == ("acme/shop.example", "j1", UUID(int=1))
        assert "lost 51 of 100 pages" in alert.message
