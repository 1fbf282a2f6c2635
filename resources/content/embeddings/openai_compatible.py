"""Any endpoint that speaks OpenAI's `POST /embeddings`: OpenAI, Mistral, vLLM, Ollama.

The key goes into one header and nowhere else: not into errors, logs or `repr`. The address that is connected to is
checked by the guard that the crawler has; a private one needs `OMNIOPS_EMBEDDINGS_ALLOW_PRIVATE`. What comes back is
not believed: count, order, width and finiteness are checked before anybody stores it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp

from resources.content.embeddings import BudgetSpent, EmbeddingCancelled, EmbeddingError, EmbeddingRefused
from resources.content.embeddings.wordpiece import count_tokens
from resources.crawler.guard import AddressRefused, guarded_connector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from resources.content.embeddings import Keep
    from resources.settings import EmbeddingSettings

logger = logging.getLogger(__name__)

_chance = random.SystemRandom()

# An endpoint that asks for a longer pause has no more for us now: what is left waits for the next run.
MAX_RETRY_AFTER_SECONDS: Final = 120.0
_BACKOFF_SECONDS: Final = 0.5
_MAX_BACKOFF_SECONDS: Final = 30.0
_STOP_LOOK_SECONDS: Final = 0.25
# What is under way is paid for: a stop waits so long for its vectors.
_STOP_GRACE_SECONDS: Final = 2.0
# 64 vectors of 4,000 numbers as JSON text are 6 MB.
_MAX_ANSWER_BYTES: Final = 64 * 2**20
_TRANSIENT: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class _Asked:
    """What one call of `embed` asks for; `over`: no further request is sent."""

    def __init__(
        self,
        texts: list[str],
        tokens: Sequence[int],
        stop: Callable[[], bool] | None,
        arrived: Callable[[int, list[list[float]]], None],
    ) -> None:
        self.texts = texts
        self.tokens = tokens
        self.stop = stop
        self.arrived = arrived
        self.over = asyncio.Event()

    async def is_over_within(self, seconds: float) -> bool:
        """Sleep so long, or until it is over."""
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            return False
        return True


class OpenAICompatible:
    """One model at one endpoint. Thread-safe; the budget is the object's.

    Args:
        settings: of the provider `openai`.
    """

    name = "openai"

    def __init__(self, settings: EmbeddingSettings) -> None:
        self._settings = settings
        # Another width of the same model is another model.
        self.model = settings.model
        self.dimensions = settings.dimensions
        self.max_tokens = settings.max_tokens
        # What is given at once: several requests under way, and a commit for every so many.
        self.batch_size = settings.batch * settings.concurrency
        self._left = settings.max_run_tokens
        self._lock = threading.Lock()

    @classmethod
    def from_settings(cls, settings: EmbeddingSettings) -> OpenAICompatible:
        """The provider of these settings."""
        return cls(settings)

    def __repr__(self) -> str:
        return f"OpenAICompatible({self.model!r} at {self.shown})"

    @property
    def shown(self) -> str:
        """The endpoint for people: scheme and host, no path, no key."""
        parts = urlsplit(self._settings.url)
        return f"{parts.scheme}://{parts.hostname or '?'}"

    def count_tokens(self, text: str) -> int:
        """Length in tokens, estimated upwards: the models' own tokenisers are not here.

        BERT's word pieces are seldom fewer than the byte-pair tokens of today's models, and a third of the bytes too.
        """
        return max(count_tokens(text), (len(text.encode("utf-8", "replace")) + 2) // 3)

    def embed(
        self, texts: Sequence[str], *, stop: Callable[[], bool] | None = None, keep: Keep | None = None
    ) -> NDArray[np.float32]:
        """See `EmbeddingProvider.embed`. What the run may not send any more is not sent, and all before it is.

        Raises:
            EmbeddingError: the endpoint gave no vectors, however often it was asked.
            EmbeddingRefused: it never will, as things are set.
            BudgetSpent: the run may send no more.
            EmbeddingCancelled: `stop` said so.
        """
        import numpy as np  # noqa: PLC0415 - as in the embedded model

        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        tokens = [self.count_tokens(text) for text in texts]
        affordable = self._affordable(tokens)

        def arrived(start: int, rows: list[list[float]]) -> None:
            numbers = range(start, start + len(rows))
            vectors[start : numbers.stop] = self._unit(np.asarray(rows, dtype=np.float32))
            if keep is not None:
                keep(numbers, vectors[start : numbers.stop])

        if affordable:
            # A thread of its own, because the caller's may have a running loop already.
            with ThreadPoolExecutor(1, thread_name_prefix="embeddings") as pool:
                asked = _Asked(list(texts[:affordable]), tokens, stop, arrived)
                pool.submit(lambda: asyncio.run(self._embed_all(asked))).result()
        if affordable < len(texts):
            raise self._too_much(tokens[affordable])
        return vectors

    def _unit(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np  # noqa: PLC0415

        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or (norms == 0).any():
            msg = f"{self.shown} gave a vector that has no direction (zero, or not finite) for {self.model}"
            raise EmbeddingRefused(msg)
        return np.asarray(vectors / norms, dtype=np.float32)

    # --- the budget ---------------------------------------------------------------------------------------------

    def _affordable(self, tokens: Sequence[int]) -> int:
        """How many texts, from the first one, the run may still send."""
        left = self._left
        for number, count in enumerate(tokens):
            left -= count
            if left < 0:
                return number
        return len(tokens)

    def _take(self, tokens: int) -> bool:
        """Count a request before it is sent; False: it may not be."""
        with self._lock:
            if tokens > self._left:
                return False
            self._left -= tokens
            return True

    def _give_back(self, tokens: int) -> None:
        """The request was not sent, or answered with an error: no vectors were made, and nothing was paid."""
        with self._lock:
            self._left += tokens

    def _too_much(self, tokens: int) -> EmbeddingError:
        most = self._settings.max_run_tokens
        if tokens > most:
            return EmbeddingRefused(
                f"a text has {tokens:,} tokens, and a run may send {most:,} to {self.shown}: no run could embed it, "
                f"and it was not sent. Raise OMNIOPS_EMBEDDINGS_MAX_RUN_TOKENS to {tokens:,} or more"
            )
        return BudgetSpent(
            f"this run may send {most:,} tokens to {self.shown}, and {self._left:,} are left, but the next text has "
            f"{tokens:,}: run `omniops embed --missing` again for the rest, or raise "
            "OMNIOPS_EMBEDDINGS_MAX_RUN_TOKENS"
        )

    # --- requests -----------------------------------------------------------------------------------------------

    async def _embed_all(self, asked: _Asked) -> None:
        size = self._settings.batch
        limit = asyncio.Semaphore(self._settings.concurrency)
        connector: aiohttp.TCPConnector = guarded_connector(
            allow_private=self._settings.allow_private, limit=self._settings.concurrency
        )
        async with aiohttp.ClientSession(
            connector=connector,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "OmniOps-Embeddings/1"},
        ) as session:

            async def one(start: int) -> None:
                async with limit:
                    if asked.over.is_set():
                        return
                    try:
                        asked.arrived(start, await self._ask(session, asked, start))
                    except EmbeddingError:
                        asked.over.set()  # before the next one is let in
                        raise

            tasks = [asyncio.create_task(one(start)) for start in range(0, len(asked.texts), size)]
            try:
                await self._wait(tasks, asked)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self, tasks: Sequence[asyncio.Task[None]], asked: _Asked) -> None:
        """Wait for all requests; after an error or a stop for those that are under way, which are paid for."""
        waiting: set[asyncio.Task[None]] = set(tasks)
        error: BaseException | None = None
        until: float | None = None
        while waiting and (until is None or time.monotonic() < until):
            done, waiting = await asyncio.wait(
                waiting, timeout=_STOP_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = error or task.exception()
            if until is None and asked.stop is not None and asked.stop():
                until = time.monotonic() + _STOP_GRACE_SECONDS
                error = error or EmbeddingCancelled("embedding was stopped before its end; what is stored stays")
            if error is not None:
                asked.over.set()
        if error is not None:
            raise error

    async def _ask(self, session: aiohttp.ClientSession, asked: _Asked, start: int) -> list[list[float]]:
        """One request, until it is answered or has been tried often enough.

        Each try counts as tokens sent, but for those that were answered with an error or never sent.
        """
        texts = asked.texts[start : start + self._settings.batch]
        tokens = sum(asked.tokens[start : start + len(texts)])
        tries, wait, why = 0, 0.0, ""
        while tries < self._settings.max_tries:
            if tries and await asked.is_over_within(wait):
                break
            if not self._take(tokens):
                if not tries:
                    raise self._too_much(tokens)
                why += ", and this run may send no more"
                break
            tries += 1
            pause = None
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    status, headers, body = await self._post(session, texts)
                if status == 200:
                    return self._checked(body, len(texts))
                self._give_back(tokens)
                why, pause = f"answered {status}", self._judge(status, headers, body)
            except TimeoutError:
                why = f"gave no answer within {self._settings.timeout_seconds:g} s"
            except (aiohttp.ClientError, OSError) as error:
                if isinstance(error, aiohttp.ClientConnectorError):
                    self._give_back(tokens)
                why = self._reason(error)
            backoff = min(_MAX_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2 ** (tries - 1))
            wait = pause if pause is not None else backoff * _chance.uniform(0.5, 1.0)
            if tries < self._settings.max_tries:
                logger.info("%s %s; asked again in %.1f s (try %d)", self.shown, why, wait, tries)
        msg = f"{self.shown} {why} ({tries} tries): the rest is embedded by a later run"
        raise EmbeddingError(msg)

    async def _post(self, session: aiohttp.ClientSession, texts: list[str]) -> tuple[int, Any, bytes]:
        asked: dict[str, Any] = {"model": self._settings.model, "input": texts, "encoding_format": "float"}
        if self._settings.send_dimensions:
            asked["dimensions"] = self.dimensions
        headers = {}
        if self._settings.api_key:
            headers["Authorization"] = f"Bearer {self._settings.api_key.reveal()}"
        url = f"{self._settings.url.rstrip('/')}/embeddings"
        async with session.post(url, json=asked, headers=headers, allow_redirects=False) as answer:
            body = bytearray()
            async for part in answer.content.iter_chunked(65_536):
                body += part
                if len(body) > _MAX_ANSWER_BYTES:
                    msg = f"{self.shown} answered with more than {_MAX_ANSWER_BYTES:,} bytes: is its url right?"
                    raise EmbeddingRefused(msg)
            return answer.status, answer.headers, bytes(body)

    def _judge(self, status: int, headers: Any, body: bytes) -> float | None:
        """Seconds to wait before it is asked again, where it said so.

        Raises:
            EmbeddingError: asking again soon would not help.
        """
        if status not in _TRANSIENT:
            hint = {
                401: "OMNIOPS_EMBEDDINGS_API_KEY is missing or wrong",
                403: "the key may not use this model",
                404: "OMNIOPS_EMBEDDINGS_URL or OMNIOPS_EMBEDDINGS_MODEL is wrong",
                413: "OMNIOPS_EMBEDDINGS_BATCH is too large for it",
            }.get(status, "redirects are not followed" if 300 <= status < 400 else self._said(body))
            msg = f"{self.shown} answered {status} for model {self.model}: {hint}"
            raise EmbeddingRefused(msg)
        asked = _retry_after(headers.get("Retry-After"))
        if asked is not None and asked > MAX_RETRY_AFTER_SECONDS:
            msg = f"{self.shown} answered {status} and asks for a pause of {asked:,.0f} s: run it again later"
            raise EmbeddingError(msg)
        return asked

    def _said(self, body: bytes) -> str:
        """What the endpoint says is wrong, if that can be read; an endpoint may repeat the key, so that is masked."""
        try:
            error = json.loads(body)["error"]
            said = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            return "it does not say why"
        key = str(self._settings.api_key.reveal()) if self._settings.api_key else ""
        said = "".join(c if c.isprintable() else " " for c in said)
        return (said.replace(key, "********") if key else said)[:200]

    def _checked(self, body: bytes, count: int) -> list[list[float]]:
        """The vectors, in the order of the texts.

        Raises:
            EmbeddingRefused: they are not what was agreed.
        """
        try:
            data = json.loads(body)["data"]
            rows = {int(one["index"]): one["embedding"] for one in data}
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{self.shown} answered with something that is no list of embeddings: is its url right?"
            raise EmbeddingRefused(msg) from error
        if len(data) != count or set(rows) != set(range(count)):
            msg = f"{self.shown} gave {len(data)} vectors for {count} texts: nothing of them is stored"
            raise EmbeddingRefused(msg)
        for row in rows.values():
            if not isinstance(row, list) or not all(type(x) in (int, float) and abs(x) < float("inf") for x in row):
                msg = f"{self.shown} gave a vector with something in it that is no finite number"
                raise EmbeddingRefused(msg)
            if len(row) != self.dimensions:
                msg = (
                    f"{self.shown} gave vectors of {len(row)} dimensions for model {self.model}, but "
                    f"OMNIOPS_EMBEDDINGS_DIMENSIONS is {self.dimensions}: nothing of them is stored"
                )
                raise EmbeddingRefused(msg)
        return [rows[number] for number in range(count)]

    def _reason(self, error: BaseException) -> str:
        """Why there was no answer, in words of our own: a library's may have the whole url."""
        cause: BaseException | None = getattr(error, "os_error", error)
        for _ in range(5):
            if isinstance(cause, AddressRefused):
                msg = (
                    f"{self.shown} is on an address that is not public, and OMNIOPS_EMBEDDINGS_ALLOW_PRIVATE is not "
                    "set: set it to 1 if the server is your own"
                )
                raise EmbeddingRefused(msg) from None
            cause = cause and (cause.__cause__ or cause.__context__)
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return "has a name without an address"
        if isinstance(error, aiohttp.ClientConnectorError):
            return f"cannot be connected to ({error.strerror or 'refused'})"
        return f"broke the connection ({type(error).__name__})"


def _retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` asks for (a number or a date); None if it cannot be read."""
    value = (value or "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value)) if value[0].isdigit() else _until(value)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None


def _until(value: str) -> float:
    moment = parsedate_to_datetime(value)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
