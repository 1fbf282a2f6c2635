"""Key patterns of the ephemeral tier and how long each lives. No key is written without one of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """One kind of key.

    Attributes:
        pattern: with the field in braces, as the documentation writes it.
        ttl_seconds: life of a key after its last write.
        holds: what stands in it.
    """

    pattern: str
    ttl_seconds: int
    holds: str

    def key(self, value: str) -> str:
        """The key for a value of the pattern's field."""
        prefix, _, rest = self.pattern.partition("{")
        return prefix + value + rest.partition("}")[2]


CRAWL_JOB = KeyPattern("crawl:job:{job_id}", 3600, "job metadata")
CRAWL_RESULTS = KeyPattern("crawl:results:{job_id}", 24 * 3600, "a job's cached page results")

KEY_PATTERNS = (CRAWL_JOB, CRAWL_RESULTS)
