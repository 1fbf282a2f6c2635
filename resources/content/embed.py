"""Embedding what is missing: pages in batches, each stored in a transaction of its own.

Whoever is killed has lost one batch, and the next run goes on from there, because what is missing is found anew each
time. A piece whose text and headings are as they were keeps its vector, and is not sent to the model. Vectors are
paid for: where a bound, an error or a stop comes before a page is whole, those that it has wait for the next run.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from resources.awaited_thread import AwaitedThread
from resources.content.chunks import Chunk, chunk_page
from resources.content.embeddings import (
    BudgetSpent,
    EmbeddingCancelled,
    EmbeddingError,
    EmbeddingProvider,
    EmbeddingRefused,
    provider_from_settings,
)
from resources.content.search_cache import forget_searches
from resources.postgres import embeddings as store
from resources.postgres.tenancy import service_connection, service_transaction
from resources.settings import EmbeddingSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from resources.content.embeddings import Vectors
    from resources.postgres.embeddings import WaitingPage
    from resources.redis.client import RedisWithFallback

# Pages that are read at once: most are small, and the largest have a megabyte.
_PAGES_AT_ONCE: Final = 16
_LOCK_LOOK_SECONDS: Final = 0.5
# A request that is under way is given up within a fraction of that.
_STOP_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class EmbedProgress:
    """How far a run has come.

    Attributes:
        pages: embedded.
        chunks: pieces that these pages have.
        embedded: pieces that the model was given; all others kept their vectors.
        cut: pages of which only the first part is embedded, because they are very long.
        unfinished: pages of which some pieces' vectors are there and wait for the rest, which the next run does.
        removed: pages that are gone, and whose vectors were removed.
        skipped_customers: whose pages another program is embedding at the moment.
        seconds: since the run began.
        stopped: why it ended before everything was done; None: it did not.
        bounded: it was stopped by a bound that was set, of pages or of tokens, which is no trouble.
    """

    pages: int = 0
    chunks: int = 0
    embedded: int = 0
    cut: int = 0
    unfinished: int = 0
    removed: int = 0
    skipped_customers: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    bounded: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


def usable_provider(engine: Engine) -> EmbeddingProvider:
    """The configured model, if it can be embedded with as things stand. No endpoint is asked, nothing is written.

    Raises:
        EmbeddingRefused: none is configured, or its key is missing.
        ModelRefused: it is registered with another width, or its indexes are missing.
        InvalidSetting: a setting cannot be meant, or one is missing.
    """
    settings = EmbeddingSettings.from_environment()
    provider = provider_from_settings(settings)
    if provider is None:
        msg = "OMNIOPS_EMBEDDINGS is none: there is no model to embed with (minilm needs no network and no key)"
        raise EmbeddingRefused(msg)
    if settings.lacks_key:
        msg = (
            "OMNIOPS_EMBEDDINGS is openai, and api.openai.com answers nobody without a key: set "
            "OMNIOPS_EMBEDDINGS_API_KEY, or name another endpoint in OMNIOPS_EMBEDDINGS_URL"
        )
        raise EmbeddingRefused(msg)
    with service_connection(engine=engine) as connection:
        store.check_usable(connection, provider.model, provider.dimensions)
    return provider


_Group = list[tuple["WaitingPage", tuple[Chunk, ...], bool]]


class _Run:
    """One run of `embed_missing`."""

    def __init__(
        self,
        engine: Engine,
        provider: EmbeddingProvider,
        stop: Callable[[], bool],
        on_progress: Callable[[EmbedProgress], None] | None,
        limit: int | None,
        cache: RedisWithFallback | None,
        job_id: str | None,
    ) -> None:
        self.engine = engine
        self.provider = provider
        self.stop = stop
        self.progress = EmbedProgress()
        self._on_progress = on_progress
        self._limit = limit
        self._cache = cache
        self._job_id = job_id
        self._started = time.monotonic()

    def add(self, **figures: int) -> None:
        """Count, and report."""
        sums = {name: getattr(self.progress, name) + figure for name, figure in figures.items()}
        self.progress = replace(self.progress, **sums, seconds=time.monotonic() - self._started)
        if self._on_progress is not None:
            self._on_progress(self.progress)

    def left(self) -> int:
        """How many pages may still be embedded."""
        return 10**12 if self._limit is None else self._limit - self.progress.pages

    def remove_gone(self, customer_id: UUID | None) -> None:
        """Remove the vectors of pages that are gone."""
        while not self.stop():
            with service_connection(engine=self.engine) as connection:
                pages, whose = store.remove_vectors_of_removed_pages(connection, customer_id=customer_id)
            if pages:
                self.add(removed=pages)
                self._changed(whose)
            if pages < 500:
                return

    def customer(self, lock: Connection, customer_id: UUID, domain: str | None, wait: bool) -> None:
        """Embed one customer's pages.

        Args:
            lock: a connection for the customer's lock alone.
            customer_id: whose.
            domain: only this website's.
            wait: for another program that is at it.
        """
        while not store.try_lock(lock, self.provider.model, customer_id):
            if not wait:
                self.add(skipped_customers=1)
                return
            _check(self.stop)
            time.sleep(_LOCK_LOOK_SECONDS)
        before = self.progress.pages
        try:
            self._pages(customer_id, domain)
        finally:
            store.unlock(lock, self.provider.model, customer_id)
            if self.progress.pages > before:
                self._changed({customer_id})

    def _pages(self, customer_id: UUID, domain: str | None) -> None:
        after = 0
        while self.left() > 0:
            _check(self.stop)
            with service_connection(engine=self.engine) as connection:
                pages = store.waiting_pages(
                    connection,
                    self.provider.model,
                    customer_id,
                    domain=domain,
                    job_id=self._job_id,
                    after=after,
                    limit=min(_PAGES_AT_ONCE, self.left()),
                )
                known = store.stored_hashes(connection, self.provider.model, [page.page_id for page in pages])
            if not pages:
                return
            for group in self._groups(pages, known):
                self._embed(group, known)
            after = pages[-1].page_id

    def _groups(self, pages: Sequence[WaitingPage], known: dict[int, set[str]]) -> Iterator[_Group]:
        """Pages whose new pieces make up about one call of the provider."""
        group: _Group = []
        new = 0
        for page in pages:
            _check(self.stop)
            chunked = chunk_page(
                title=page.title,
                markdown=page.markdown,
                text=page.text,
                max_tokens=self.provider.max_tokens,
                count_tokens=self.provider.count_tokens,
            )
            more = sum(chunk.hash not in known[page.page_id] for chunk in chunked.chunks)
            if group and new + more > self.provider.batch_size:
                yield group
                group, new = [], 0
            group.append((page, chunked.chunks, chunked.cut))
            new += more
        if group:
            yield group

    def _embed(self, group: _Group, known: dict[int, set[str]]) -> None:
        wanted = {
            chunk.hash: chunk.model_input
            for page, chunks, _ in group
            for chunk in chunks
            if chunk.hash not in known[page.page_id]
        }
        hashes = list(wanted)
        found: dict[str, Vectors] = {}
        try:
            # A page of a thousand pieces is many calls: what each brings is stored before the next is paid for.
            for start in range(0, len(hashes), self.provider.batch_size):
                if found:
                    self._store(group, known, found)
                part = hashes[start : start + self.provider.batch_size]
                self.provider.embed(
                    [wanted[one] for one in part], stop=self.stop, keep=partial(self._take, part, found)
                )
                if len(found) != len(part):
                    msg = f"provider {self.provider.name} gave {len(found)} vectors for {len(part)} texts"
                    raise EmbeddingError(msg)
        except EmbeddingError:
            if found:
                self._store(group, known, found)
            raise
        self._store(group, known, found)

    def _take(self, part: Sequence[str], found: dict[str, Vectors], numbers: Sequence[int], vectors: Vectors) -> None:
        if vectors.shape != (len(numbers), self.provider.dimensions):
            msg = f"provider {self.provider.name} gave {vectors.shape} for {len(numbers)} texts: nothing is stored"
            raise EmbeddingError(msg)
        found.update((part[number], row) for number, row in zip(numbers, vectors, strict=True))

    def _store(self, group: _Group, known: dict[int, set[str]], found: dict[str, Vectors]) -> None:
        """Store the pages that are whole, and keep for the others what was found of them."""
        written = {one: as_vector(row.tolist()) for one, row in found.items()}
        whole, parts, cut = [], [], 0
        for page, chunks, is_cut in group:
            there = known[page.page_id]
            rows = [
                store.StoredChunk(
                    chunk.index,
                    chunk.heading,
                    chunk.text,
                    chunk.hash,
                    None if chunk.hash in there else written.get(chunk.hash),
                )
                for chunk in chunks
            ]
            there.update(row.hash for row in rows if row.vector is not None)
            if all(row.hash in there for row in rows):
                whole.append((page, rows))
                cut += is_cut
            else:
                parts.append((page, rows))
        with service_connection(engine=self.engine) as connection:
            stored, pieces = store.store_pages(connection, self.provider.model, whole)
            store.keep_vectors(connection, self.provider.model, parts)
        unfinished = sum(any(row.hash in known[page.page_id] for row in rows) for page, rows in parts)
        self.progress = replace(self.progress, unfinished=unfinished)
        self.add(pages=stored, chunks=pieces, embedded=len(found), cut=cut)
        found.clear()

    def stopped_by(self, error: EmbeddingError) -> str:
        """Why the run ended early, and what waits."""
        count = self.progress.unfinished
        pages = "of one page a part is" if count == 1 else f"of {count:,} pages a part is"
        return f"{error} ({pages} embedded and kept)" if count else str(error)

    def _changed(self, customers: set[UUID]) -> None:
        if self._cache is not None:
            for customer_id in customers:
                forget_searches(self._cache, customer_id)


def embed_missing(
    engine: Engine,
    provider: EmbeddingProvider,
    *,
    customer_id: UUID | None = None,
    domain: str | None = None,
    job_id: str | None = None,
    limit: int | None = None,
    wait: bool = False,
    stop: Callable[[], bool] | None = None,
    on_progress: Callable[[EmbedProgress], None] | None = None,
    cache: RedisWithFallback | None = None,
) -> EmbedProgress:
    """Embed the pages that the provider's model has not embedded as they are now, and remove vectors of gone pages.

    Args:
        engine: of the permanent tier.
        provider: the model.
        customer_id: only this customer's pages.
        domain: only this website's.
        job_id: only pages that this crawl has read.
        limit: at most so many pages.
        wait: for another program that embeds a customer's pages already; else the customer is passed over.
        stop: asked now and then: True ends the run within seconds.
        on_progress: told after each batch.
        cache: whose cached searches of the customers concerned are forgotten.

    Returns:
        What was done; `stopped` says why where it ended early (asked to stop, or the provider's trouble): all that
        was stored stays, and the next run goes on.

    Raises:
        ModelRefused: the model cannot be used as it is set; nothing was written.
        EmbeddingError: the provider gave nothing at all.
    """
    run = _Run(engine, provider, stop or (lambda: False), on_progress, limit, cache, job_id)
    with service_connection(engine=engine) as connection:
        store.register_model(connection, provider.model, provider.name, provider.dimensions)
    try:
        run.remove_gone(customer_id)
        # Locks hang on a connection of their own, outside of any transaction.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as lock:
            if customer_id is not None:
                run.customer(lock, customer_id, domain, wait)
            else:
                for customer in _customers(engine, provider.model):
                    if run.left() <= 0:
                        break
                    run.customer(lock, customer, domain, wait)
    except EmbeddingCancelled:
        return replace(run.progress, stopped="asked to stop")
    except EmbeddingError as error:
        if not run.progress.embedded and not run.progress.pages:
            raise
        return replace(run.progress, stopped=run.stopped_by(error), bounded=isinstance(error, BudgetSpent))
    if run.left() <= 0:
        return replace(run.progress, stopped=f"the limit of {limit:,} pages is reached", bounded=True)
    return run.progress


def in_a_thread(
    work: Callable[[Callable[[], bool], Callable[[EmbedProgress], None]], EmbedProgress],
    report: Callable[[EmbedProgress], object],
) -> EmbedProgress:
    """Embed in a thread and wait for it in short steps, so that whoever interrupts the caller is heard at once.

    Args:
        work: given what asks whether to stop, and what is told of progress.
        report: called with the newest progress a few times a second, in the caller's thread.

    Raises:
        Exception: what `work` raised, or what interrupted the caller; then the work has been told to stop.
    """
    stop = threading.Event()
    newest: list[EmbedProgress] = []
    ended: list[EmbedProgress | BaseException] = []

    def run() -> None:
        try:
            ended.append(work(stop.is_set, lambda now: newest.__setitem__(slice(None), [now])))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            ended.append(error)

    thread = AwaitedThread(run, "embed")
    try:
        thread.start()
        over = False
        while not over:
            over = thread.wait(0.2)
            if newest:
                report(newest[0])
    except BaseException:
        stop.set()
        thread.wait(_STOP_SECONDS)
        raise
    result = ended[0]
    if isinstance(result, BaseException):
        raise result
    return result


def _customers(engine: Engine, model: str) -> Iterator[UUID]:
    after: UUID | None = None
    with engine.connect() as connection:
        while True:
            with service_transaction(connection):
                after = store.next_customer(connection, model, after)
            if after is None:
                return
            yield after


def _check(stop: Callable[[], bool]) -> None:
    if stop():
        msg = "embedding was stopped before its end; what is stored stays"
        raise EmbeddingCancelled(msg)


def as_vector(numbers: Sequence[float]) -> str:
    """A vector as pgvector reads it. Half precision has three digits: six are more than enough."""
    return "[" + ",".join(f"{number:.6g}" for number in numbers) + "]"
