"""What a crawl is asked to do, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Defaults of every crawl; the specification's figures.
DEFAULT_MAX_PAGES = 1_000
DEFAULT_MAX_DEPTH = 20
DEFAULT_MAX_BYTES = 10 * 2**30
DEFAULT_MAX_SECONDS = 3_600
DEFAULT_CONCURRENCY = 16

# How pages are made: by the server; by scripts, in a browser; by scripts where the server sends an empty shell.
RENDER_MODES = ("http", "browser", "auto")


@dataclass(frozen=True, slots=True)
class CrawlPlan:
    """A crawl's order, checked already: urls are normalised, numbers are in range.

    Attributes:
        urls: the seeds.
        job_type: `full_crawl`, `incremental` or `single_page`.
        max_pages: at most so many urls are fetched (failures and skips among them), not one more.
        max_bytes: of the whole job, on the wire; what is under way when it is reached is cut off, and what has just
            arrived may lie beyond it.
        max_depth: links from a seed.
        max_seconds: of one run.
        concurrency: requests at once.
        requests_per_minute: to one domain, by all crawls together; 0 for no limit.
        include: globs; where there are any, a link has to match one.
        exclude: globs; a link that matches one is not followed.
        respect_robots: robots.txt, `noindex` and `nofollow` are obeyed.
        allow_private: private and loopback addresses may be fetched.
        shards: workers of a run.
        keep_text: page texts are kept and indexed.
        render: one of `RENDER_MODES`.
        embed: pages whose text changed are embedded when the crawl has ended.
        keep_html_days: pages are kept as they were fetched, compressed, for so long; 0: not at all.
    """

    urls: tuple[str, ...]
    job_type: str = "full_crawl"
    max_pages: int = DEFAULT_MAX_PAGES
    max_bytes: int = DEFAULT_MAX_BYTES
    max_depth: int = DEFAULT_MAX_DEPTH
    max_seconds: float = DEFAULT_MAX_SECONDS
    concurrency: int = DEFAULT_CONCURRENCY
    requests_per_minute: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    respect_robots: bool = True
    allow_private: bool = False
    shards: int = 1
    keep_text: bool = True
    render: str = "http"
    embed: bool = False
    keep_html_days: int = 0

    def as_config(self) -> dict[str, Any]:
        """The plan as it is kept with the job."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name in self.__slots__
            for value in (getattr(self, name),)
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CrawlPlan:
        """The plan that was kept with a job; fields that it does not know are left out."""
        known = {name: config[name] for name in cls.__slots__ if name in config}
        for name in ("urls", "include", "exclude"):
            if name in known:
                known[name] = tuple(known[name])
        return cls(**known)


_PHASES = ("fetch", "politeness", "parse", "read", "write", "cache", "index")


@dataclass(slots=True)
class CrawlProgress:
    """How far a crawl is; read from other threads, written by the crawl's own.

    Attributes:
        total, successful, failed, skipped: results committed for the job, earlier runs included.
        fetched: urls whose outcome this run has, committed or not.
        waiting: urls that this worker knows and has not fetched.
        in_flight: requests under way.
        bytes: on the wire, this run.
        retries: tries after the first, this run.
        repairs: characters and links that could not be used as they stood, this run.
        unread: pages whose main text could not be told, so that all that is visible was kept; this run.
        seconds: since this run's start.
        rendering: pages that a browser rendered (`rendered`) and could not (`render_failed`), browsers started, and
            connections refused to pages; empty without a browser.
        delay: seconds between two requests in force, of the domain with the longest.
        phases: seconds of work spent in `fetch` (waiting included), `parse`, `write` (Postgres), and, beside it,
            `read` (main text, waiting for it included), `cache` and `index`; `politeness`: waited, although there was
            something to fetch.
    """

    total: int = 0
    successful: int = 0
    failed: int = 0
    skipped: int = 0
    fetched: int = 0
    waiting: int = 0
    in_flight: int = 0
    bytes: int = 0
    retries: int = 0
    repairs: int = 0
    unread: int = 0
    seconds: float = 0.0
    rendering: dict[str, int] = field(default_factory=dict)
    delay: float = 0.0
    phases: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("fetch", "politeness", "parse", "read", "write", "cache", "index"), 0.0
        )
    )

    @property
    def pages_per_second(self) -> float:
        """Rate of this run."""
        return self.fetched / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class CrawlOutcome:
    """How one run of a crawl ended.

    Attributes:
        finish_reason: `exhausted`, `max_pages`, `max_bytes`, `max_seconds`, `disallowed`, `site_unreachable`, or
            the reason given to `stop`.
        complete: nothing is left to fetch within the limits.
        detail: a sentence for a person, where there is something to say.
        progress: the last progress.
    """

    finish_reason: str
    complete: bool
    detail: str | None
    progress: CrawlProgress
