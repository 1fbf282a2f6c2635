"""By which name the crawl is known to websites. It imports nothing: processes that only read pages start with it."""

from __future__ import annotations

from typing import Final

USER_AGENT: Final = "OmniOpsBot/0.1 (+https://omniops.example/bot)"
"""Says who we are, and where a site's owner can read more."""
ROBOTS_TOKEN: Final = "OmniOpsBot"  # noqa: S105 - the name in robots.txt, no secret
"""The product token that robots.txt and robots meta tags name us by."""
