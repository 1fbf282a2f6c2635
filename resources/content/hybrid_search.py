"""Search over a customer's pages: full text and vectors, fused by the ranks that each gives (reciprocal rank fusion).

The two arms fail differently. Full text finds the word that was typed and misses every paraphrase; vectors find what
means the same and blur names and numbers. A page that both find comes first.

Everything is read as the customer, under row-level security. No Dagster here: the chat service imports this.
"""

from __future__ import annotations

import logging
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from uuid import UUID

from resources.content.embeddings import EmbeddingError
from resources.content.search_words import read_words
from resources.postgres import search as database
from resources.postgres.tenancy import tenant_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Engine

    from resources.content.embeddings import EmbeddingProvider
    from resources.content.search_words import SearchWords
    from resources.redis.client import RedisWithFallback

logger = logging.getLogger(__name__)

MAX_QUERY_CHARACTERS: Final = 1_000
MAX_RESULTS: Final = 100
DEFAULT_RESULTS: Final = 10

# Of reciprocal rank fusion (Cormack, Clarke, Büttcher 2009): how little more the first place counts than the second.
# With their 60, which suits dozens of like arms, a page that is in both arms by accident is before the best of one.
# This and the next two were chosen by bench/retrieval.py.
_RANK_CONSTANT: Final = 8
# So many words are looked for as words. Of a longer question, a page that has them all has them more and more by
# accident, since long pages have every word; of a shorter one, a page that has them is what was meant.
_KEYWORDS: Final = 3
_MOST_FOR_WORDS: Final = 1.5
# What each arm gives to the fusion, at least.
_CANDIDATES: Final = 50
# Several pieces of a page may be near; pages are what is ranked.
_CHUNKS_FOR_EACH_PAGE: Final = 3
CHUNK_CANDIDATES: Final = _CANDIDATES * _CHUNKS_FOR_EACH_PAGE

Arm = Literal["text", "vector", "both"]
Mode = Literal["hybrid", "text"]


class InvalidSearch(ValueError):
    """What was asked cannot be searched for; the message says what to change."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One page that was found.

    Attributes:
        url: of the page.
        title: of the page; None where it has none.
        snippet: the passage that fits best, as plain text (escape it before it stands in HTML), with `**` around the
            words of the question.
        heading: the headings that the passage stands under.
        score: 0 to 1, by rank: 1 is first in every arm. Comparable within one search only.
        found_by: which arm found it.
        domain: the website.
        page_id: of the page, in `scraped_pages`.
        similarity: of the question and the page's nearest piece, by the model: their cosine, at most 1. Comparable
            between searches with one model, as the score is not: to tell an answer from the least bad.
            None where the vectors did not find the page.
    """

    url: str
    title: str | None
    snippet: str
    heading: str
    score: float
    found_by: Arm
    domain: str
    page_id: int
    similarity: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SearchResults:
    """What was found, best first. Iterate over it.

    Attributes:
        query: what was asked.
        results: the pages.
        mode: `hybrid`, or `text` where there were no vectors to compare.
        notice: why nothing was found, or why it was full text alone; None: nothing to say.
        model: whose vectors were compared; None in mode `text`.
    """

    query: str
    results: tuple[SearchResult, ...] = field(default=())
    mode: Mode = "text"
    notice: str | None = None
    model: str | None = None

    def __iter__(self) -> Iterator[SearchResult]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, number: int) -> SearchResult:
        return self.results[number]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {
            "query": self.query,
            "mode": self.mode,
            "notice": self.notice,
            "model": self.model,
            "results": [result.as_dict() for result in self.results],
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> SearchResults:
        """What `as_dict` gave."""
        return cls(**{**stored, "results": tuple(SearchResult(**one) for one in stored["results"])})


def search(
    query: str, customer_id: UUID | str, limit: int = DEFAULT_RESULTS, domain: str | None = None
) -> SearchResults:
    """Search a customer's pages in the configured stores, with the configured model.

    Args:
        query: words or a question; "phrases" in quotes, and -words that shall not be there (`search_words.py`).
        customer_id: whose pages.
        limit: at most so many pages, 1 to 100.
        domain: only this website's (host, with the port where it is not the scheme's own).

    Raises:
        InvalidSearch: the query is empty, too long or holds NUL, the limit is out of range, or there is no such
            customer.
        DatabaseError: the permanent tier cannot be reached.
    """
    from resources import stack  # noqa: PLC0415 - the stack is above
    from resources.content.embeddings import provider_from_settings  # noqa: PLC0415
    from resources.settings import CacheSettings  # noqa: PLC0415

    configured = Search(
        stack.database_engine(),
        provider_from_settings(),
        stack.cache(),
        cache_seconds=CacheSettings.from_environment().search_cache_seconds,
    )
    return configured.search(query, customer_id, limit, domain)


class Search:
    """Search in given stores.

    Args:
        engine: of the permanent tier.
        provider: of the question's vector; None: full text alone.
        cache: of results; None: each search is a new one.
        cache_seconds: how long results are kept.
    """

    def __init__(
        self,
        engine: Engine,
        provider: EmbeddingProvider | None = None,
        cache: RedisWithFallback | None = None,
        *,
        cache_seconds: int = 300,
    ) -> None:
        self._engine = engine
        self._provider = provider
        self._cache = cache
        self._cache_seconds = cache_seconds

    def search(
        self, query: str, customer_id: UUID | str, limit: int = DEFAULT_RESULTS, domain: str | None = None
    ) -> SearchResults:
        """See `search`."""
        query, customer, domain = check_search(query, customer_id, limit, domain)
        if self._cache is None:
            return self._search(query, customer, limit, domain)[0]
        from resources.content.search_cache import cached  # noqa: PLC0415 - brings Redis

        model = self._provider.model if self._provider else ""
        fresh: list[SearchResults] = []

        def load() -> dict[str, Any] | None:
            found, keep = self._search(query, customer, limit, domain)
            fresh.append(found)
            return found.as_dict() if keep else None

        stored = cached(self._cache, customer, (query, limit, domain, model), load, self._cache_seconds)
        if fresh:
            return fresh[0]
        if stored is None:
            return self._search(query, customer, limit, domain)[0]
        return SearchResults.from_dict(stored)

    def _search(self, query: str, customer: UUID, limit: int, domain: str | None) -> tuple[SearchResults, bool]:
        """What is found, and whether it may be cached: what an endpoint's trouble made poorer may not."""
        words = read_words(query)
        # Before the transaction: a model may take its time, and an endpoint more.
        asked, notice, keep = self._asked(words, customer)
        candidates = max(_CANDIDATES, 2 * limit)
        model = self._provider.model if self._provider else None
        with tenant_pipeline(customer, engine=self._engine) as connection:

            def pages(words: str | None, *, any_word: bool = False) -> database.Answer[list[int]]:
                if not words:
                    return list
                return database.pages_with_words(
                    connection, words, domain=domain, limit=candidates, any_word=any_word
                )

            known = database.customer_exists(connection)
            nearest = None
            if asked is not None and model is not None:
                nearest = database.nearest_chunks(
                    connection,
                    model,
                    asked.vector,
                    domain=domain,
                    limit=candidates * _CHUNKS_FOR_EACH_PAGE,
                    one_by_one=asked.one_by_one,
                )
            with_words = pages(words.query if words.wanted else None)
            # What weight the words lose by their number, the names among them have.
            weight = words_weight(words.count)
            with_names = pages(words.named if weight < 1 else None)
            if not known():
                raise _unknown(customer)
            near = nearest() if nearest else []
            if near and words.excluded:
                left = database.pages_without(connection, words.excluded, [chunk.page_id for chunk in near])()
                near = [chunk for chunk in near if chunk.page_id in left]
            found = with_words() or pages(words.apart)()
            if not found and not near and words.wanted:
                # Better a page with some of the words than none.
                found = pages(words.query, any_word=True)()
            ranked = fuse(near, [(found, weight), (with_names(), 1 - weight)])[:limit]
            if not ranked:
                there = database.searchable(connection, words.wanted, domain)()
                notice = "; ".join(filter(None, (_nothing(words, domain, there), notice)))
            to_show = database.shown_pages(
                connection, words.wanted, model, {one.page_id: one.chunk_index for one in ranked}
            )
        shown = to_show()
        results = tuple(_result(one, shown[one.page_id]) for one in ranked if one.page_id in shown)
        mode: Mode = "hybrid" if near else "text"
        return SearchResults(query, results, mode, notice, model if near else None), keep

    def _asked(self, words: SearchWords, customer: UUID) -> tuple[_Asked | None, str | None, bool]:
        """The question as a vector; or why there is none, and whether that will be so for a while."""
        if not words.wanted:
            return None, None, True
        if self._provider is None:
            return None, "full text alone: no embedding model is configured (OMNIOPS_EMBEDDINGS is none)", True
        with tenant_pipeline(customer, engine=self._engine) as connection:
            answer = database.vectors_of(connection, self._provider.model)
        vectors = answer()
        if not vectors.any:
            notice = (
                f"full text alone: nothing of this customer's is embedded with {self._provider.model} yet "
                "(`omniops embed --missing` does that)"
            )
            return None, notice, True
        try:
            vector = self._provider.embed([words.meaning])[0].tolist()
        except EmbeddingError as error:
            logger.warning("a search goes on with full text alone: %s", error)
            return None, f"full text alone: {error}", False
        return _Asked(vector, vectors.few), None, True


class _Asked(NamedTuple):
    """A question's vector, and whether the customer's are compared with it one by one."""

    vector: Sequence[float]
    one_by_one: bool


@dataclass(frozen=True, slots=True)
class Ranked:
    """A page in the fused order.

    Attributes:
        page_id: of the page.
        score: 0 to 1.
        found_by: which arm found it.
        chunk_index: of its nearest piece; None where the vectors did not find it.
        similarity: of that piece.
    """

    page_id: int
    score: float
    found_by: Arm
    chunk_index: int | None
    similarity: float | None


def words_weight(count: int) -> float:
    """What the rank in full text is worth beside that in vectors, by the number of words that were typed."""
    return min(_MOST_FOR_WORDS, (_KEYWORDS / max(1, count)) ** 2)


def fuse(near: Sequence[database.NearChunk], texts: Sequence[tuple[Sequence[int], float]]) -> list[Ranked]:
    """Pages by the sum of what their ranks in the arms are worth; among equals the nearer is first.

    Args:
        near: pieces, nearest first; a page's first one counts.
        texts: pages that full text found, best first, each with its weight, beside 1 for `near`.
    """
    chunks: dict[int, database.NearChunk] = {}
    for chunk in near:
        chunks.setdefault(chunk.page_id, chunk)
    arms = [(arm, weight) for arm, weight in ((list(chunks), 1.0), *texts) if arm and weight > 0]
    worth: dict[int, float] = {}
    for arm, weight in arms:
        for rank, page_id in enumerate(arm, start=1):
            worth[page_id] = worth.get(page_id, 0.0) + weight / (_RANK_CONSTANT + rank)
    best = (sum(weight for _, weight in arms) or 1.0) / (_RANK_CONSTANT + 1)
    found = {page_id for pages, _ in texts for page_id in pages}
    order = sorted(worth, key=lambda page_id: -worth[page_id])
    ranked = []
    for page_id in order:
        nearest = chunks.get(page_id)
        found_by: Arm = "vector" if page_id not in found else "both" if nearest else "text"
        ranked.append(
            Ranked(
                page_id,
                round(worth[page_id] / best, 6),
                found_by,
                nearest.chunk_index if nearest else None,
                round(1.0 - nearest.distance, 4) if nearest else None,
            )
        )
    return ranked


def check_search(query: str, customer_id: UUID | str, limit: int, domain: str | None) -> tuple[str, UUID, str | None]:
    """The checked query, customer and domain.

    Raises:
        InvalidSearch: the first thing that is wrong.
    """
    if not isinstance(query, str) or "\x00" in query:
        msg = "the query holds a NUL, or is no text: nothing on a page could match it"
        raise InvalidSearch(msg)
    query = re.sub(r"\s+", " ", query.encode("utf-8", "ignore").decode()).strip()
    if not query:
        msg = "the query is empty: say what to look for"
        raise InvalidSearch(msg)
    if len(query) > MAX_QUERY_CHARACTERS:
        msg = f"the query has {len(query):,} characters, and {MAX_QUERY_CHARACTERS:,} are the most: shorten it"
        raise InvalidSearch(msg)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_RESULTS:
        msg = f"the limit is {limit!r}, and must be a whole number from 1 to {MAX_RESULTS}"
        raise InvalidSearch(msg)
    if domain is not None:
        domain = domain.strip().lower()
        if not domain or len(domain) > 255 or "/" in domain or not domain.isprintable():
            msg = f"the domain is {domain[:40]!r}, and must be a host such as docs.example.com"
            raise InvalidSearch(msg)
    try:
        customer = customer_id if isinstance(customer_id, UUID) else UUID(customer_id)
    except (ValueError, AttributeError, TypeError) as error:
        msg = f"customer id {str(customer_id)[:60]!r} is not a uuid"
        raise InvalidSearch(msg) from error
    return query, customer, domain


def _unknown(customer: UUID) -> InvalidSearch:
    return InvalidSearch(f"there is no customer {customer}: is the id right?")


def _nothing(words: SearchWords, domain: str | None, there: database.Searchable) -> str:
    """Why nothing was found."""
    known = ", ".join(there.domains)
    reasons = (
        (not there.pages, "found: this customer has no pages yet (`omniops crawl URL` reads a website)"),
        (
            not there.of_domain,
            f"found on {domain}: has it been crawled for this customer? There are pages of {known}",
        ),
        (
            not words.wanted and bool(words.excluded),
            f"looked for: {words.excluded} says only what shall not be there; add a word that shall be",
        ),
        (not words.wanted, "looked for: there is no word in the question"),
        (not there.indexed, "found: no page of this customer's is indexed yet; the next crawl does that"),
        (
            not there.words,
            "looked for: these words stand everywhere (as the, of, and do); add one that says what is meant",
        ),
        (bool(words.excluded), f"found that has none of {words.excluded}: leave that out, or use other words"),
    )
    return "nothing was " + next((why for so, why in reasons if so), "found: no page has one of these words")


def _result(ranked: Ranked, shown: dict[str, Any]) -> SearchResult:
    return SearchResult(
        url=shown["url"],
        title=shown["title"],
        snippet=shown["snippet"].strip(),
        heading=shown["heading"],
        score=ranked.score,
        found_by=ranked.found_by,
        domain=shown["domain"],
        page_id=ranked.page_id,
        similarity=ranked.similarity,
    )
