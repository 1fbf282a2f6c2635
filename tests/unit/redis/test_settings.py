"""What can be chosen about the ephemeral tier."""

from __future__ import annotations

import pytest

from resources.settings import CacheSettings, InvalidSetting


def test_the_defaults_hold_where_nothing_is_set() -> None:
    assert CacheSettings.from_environment({"OMNIOPS_SEARCH_CACHE_SECONDS": " "}) == CacheSettings(300, 4)


def test_settings_are_read_from_the_environment() -> None:
    environment = {"OMNIOPS_SEARCH_CACHE_SECONDS": "60", "OMNIOPS_RATE_LIMIT_SHARES": "1"}
    assert CacheSettings.from_environment(environment) == CacheSettings(60, 1)


@pytest.mark.parametrize("value", ["0", "86401", "-1", "five", "1.5", "²", "1_0"])
def test_a_value_that_cannot_be_used_is_named_with_its_range(value: str) -> None:
    with pytest.raises(InvalidSetting, match=r"OMNIOPS_SEARCH_CACHE_SECONDS is .* from 1 to 86,400"):
        CacheSettings.from_environment({"OMNIOPS_SEARCH_CACHE_SECONDS": value})
