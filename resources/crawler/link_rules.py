"""Which of the urls that a crawl meets are followed, and what becomes of the others.

What belongs here: a job's own rules (its site, its globs, its depth), traps, and the account of what was left out.
What does not: what a page says (`page`), robots.txt, and who fetches a url when.

Every url is accounted for. One that a rule of the job or a trap leaves out is entered into the frontier with its
reason, and gets a `skipped` row when the job ends; those of other sites, of other kinds, and those beyond a number of
rows are counted by reason.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from resources.crawler.traps import TrapGuard, without_session
from resources.crawler.urls import Globs, looks_binary, site_of, url_hash
from resources.postgres.frontier import FoundLink

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from resources.crawler.page import Page
    from resources.crawler.plan import CrawlPlan
    from resources.crawler.sitemaps import SitemapEntry

    class LinkMemory(Protocol):
        """What a worker remembers of links: the request manager."""

        def follow(self, url_hash: int, *, beyond_depth: bool) -> bool: ...

        def knows(self, url_hash: int) -> bool: ...


__all__ = ["FOLLOWING_JOBS", "LinkRules"]

FOLLOWING_JOBS: Final = frozenset({"full_crawl", "incremental"})
"""Jobs that follow links."""
MAX_ROWS_OF_A_REASON: Final = 10_000
"""Urls of one reason that a worker enters into the frontier to explain them; further ones are counted alone."""
_REMEMBERED_LINKS: Final = 20_000
"""Links whose key is remembered: a site's pages have most of theirs in common. Some megabytes at most."""
_COUNTED_ONCE: Final = 200_000
"""Urls that are counted alone and remembered, so that each counts once; past that some may count again."""
_NOT_OURS: Final = int("9" * 30)
"""The "key" of a url that is not followed whoever links to it, told by identity."""


class LinkRules:
    """One job's rules, and what one worker left out by them.

    Args:
        plan: the job's.
    """

    def __init__(self, plan: CrawlPlan) -> None:
        self._plan = plan
        self.sites: Final = frozenset(site_of(url) for url in plan.urls)
        self._globs = Globs(plan.include, plan.exclude)
        self._follows = plan.job_type in FOLLOWING_JOBS
        self._traps = TrapGuard()
        self._keys: dict[str, int] = {}
        self._counted: set[int] = set()
        self._nofollow: set[int] = set()
        self._rows: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    # --- what pages hold ------------------------------------------------------------------------------------

    def links_of(self, page: Page, depth: int, memory: LinkMemory) -> list[FoundLink]:
        """Give the links of a page that Postgres has to hear of: those that this worker has not met.

        Args:
            page: as it was read.
            depth: of its links.
            memory: what this worker has met.

        Returns:
            Links to follow, and links that are kept with the reason why they are not.
        """
        if not self._follows:
            return []
        found = self.follow(self._all_links(page), depth, memory)
        led_on = any(link.skip_reason is None and self._traps.leads_on(page.url, link.url) for link in found)
        for url in page.nofollow_links:
            self._leave_unfollowed(url, memory)
        if page.malformed_links:
            self._counts["malformed"] += page.malformed_links
        self._traps.read(page.url, page.content_hash, led_on=led_on)
        return found

    def follow(self, urls: Iterable[str], depth: int, memory: LinkMemory) -> list[FoundLink]:
        """Give those of some urls that this worker has not met: to follow, or kept with the reason why not.

        Args:
            urls: found on a page, now or when it was read last.
            depth: of these links.
            memory: what this worker has met.
        """
        if not self._follows:
            return []
        too_deep = depth > self._plan.max_depth
        found: list[FoundLink] = []
        keys = self._keys
        for url in urls:
            key = keys.get(url)
            if key is None:
                key = self._key(url)
            if key is _NOT_OURS or not memory.follow(key, beyond_depth=too_deep):
                continue
            link = self._judge(key, without_session(url), depth, too_deep=too_deep)
            if link is not None:
                found.append(link)
        return found

    def ours(self, page: Page) -> list[str]:
        """Give the links of a page that lead to pages of the site: what is remembered of it for the next crawl."""
        if page.nofollow and self._plan.respect_robots:
            return []
        keys = self._keys
        return [
            url for url in self._all_links(page) if (keys[url] if url in keys else self._key(url)) is not _NOT_OURS
        ]

    def wants(self, url: str) -> bool:
        """Say whether the job's globs let a url in."""
        return not self._globs or self._globs.wants(url)

    def _all_links(self, page: Page) -> list[str]:
        """The links and the canonical url, which the page may name without linking to it."""
        if page.canonical_url is None or (page.nofollow and self._plan.respect_robots):
            return page.links
        return [*page.links, page.canonical_url]

    def _key(self, url: str) -> int:
        if len(self._keys) >= _REMEMBERED_LINKS:
            self._keys.clear()
        reason = self._not_ours(url)
        if reason is not None:
            self._count_once(url, reason)
            key = _NOT_OURS
        else:
            key = url_hash(without_session(url))
        self._keys[url] = key
        return key

    def _not_ours(self, url: str) -> str | None:
        if site_of(url) not in self.sites:
            return "off_site"
        return "binary" if looks_binary(url) else None

    def _judge(self, key: int, url: str, depth: int, *, too_deep: bool) -> FoundLink | None:
        """A link that is new to this worker: to be followed, kept with a reason, or (None) only counted."""
        if key in self._nofollow:
            self._nofollow.discard(key)
            self._counts["nofollow"] -= 1
        if self._globs and not self._globs.wants(url):
            reason: str | None = "excluded"
        elif too_deep:
            # It stays known, because a shorter way to it may be found: so there is no limit of rows for it.
            return FoundLink(key, url, depth, "max_depth")
        else:
            reason = self._traps.judge(url)
        if reason is not None:
            self._rows[reason] += 1
            if self._rows[reason] > MAX_ROWS_OF_A_REASON:
                self._counts[reason] += 1
                return None
        return FoundLink(key, url, depth, reason)

    def _leave_unfollowed(self, url: str, memory: LinkMemory) -> None:
        """A `nofollow` link counts, unless another page's link to the same url is followed, now or later."""
        key = self._key(url)
        if key is _NOT_OURS or key in self._nofollow or memory.knows(key) or len(self._nofollow) >= _COUNTED_ONCE:
            return
        self._nofollow.add(key)
        self._counts["nofollow"] += 1

    # --- redirects ------------------------------------------------------------------------------------------

    def refuse_redirect(self, source_hash: int, target: str, memory: LinkMemory) -> str | None:
        """Say why a redirect is not followed within its visit: `redirect_off_site` or `known`; None if it is.

        A redirect that only puts a session id into the url leads to the same page.
        """
        if site_of(target) not in self.sites:
            return "redirect_off_site"
        key = url_hash(without_session(target))
        return "known" if key != source_hash and memory.knows(key) else None

    # --- sitemaps -------------------------------------------------------------------------------------------

    def wanted(self, entries: Iterable[SitemapEntry]) -> list[tuple[int, SitemapEntry, str | None]]:
        """Give what of a sitemap's entries is entered into the frontier: (key, entry, reason not to follow it).

        The owner of a site names the pages, so traps are not looked for; site, kind and globs hold.
        """
        chosen = []
        for entry in entries:
            url = without_session(entry.url)
            reason = self._not_ours(url)
            if reason is not None:
                self._count_once(url, reason)
                continue
            if self._globs and not self._globs.wants(url):
                reason = "excluded"
                self._rows[reason] += 1
                if self._rows[reason] > MAX_ROWS_OF_A_REASON:
                    self._count_once(url, reason)
                    continue
            chosen.append((url_hash(url), entry if url == entry.url else entry.with_url(url), reason))
        return chosen

    # --- the account ----------------------------------------------------------------------------------------

    def _count_once(self, url: str, reason: str) -> None:
        key = hash(url)
        if key in self._counted:
            return
        if len(self._counted) >= _COUNTED_ONCE:
            self._counted.clear()
        self._counted.add(key)
        self._counts[reason] += 1

    def take_counts(self) -> dict[str, int]:
        """Give what was left out since the last call and has no row, by reason; it can be negative."""
        counts, self._counts = self._counts, Counter()
        return {reason: count for reason, count in counts.items() if count}

    def give_back_counts(self, counts: dict[str, int]) -> None:
        """Take counts again that could not be stored."""
        self._counts.update(counts)
