"""The ephemeral tier: a cache that may be away at any moment."""

from resources.redis.client import BestEffortRedis
from resources.redis.keys import CRAWL_JOB, CRAWL_RESULTS, KEY_PATTERNS, KeyPattern

__all__ = ["CRAWL_JOB", "CRAWL_RESULTS", "KEY_PATTERNS", "BestEffortRedis", "KeyPattern"]
