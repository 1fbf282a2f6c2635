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

    from resources.settings import EmbeddingSettings

logger = logging.getLogger(__name__)

_chance = random.SystemRandom()

# An endpoint that asks for a longer pause has no more for us now: what is left waits for the next run.
MAX_RETRY_AFTER_SECONDS: Final = 120.0
_BACKOFF_SECONDS: Final = 0.5
_MAX_BACKOFF_SECONDS: Final = 30.0
_STOP_LOOK_SECONDS: Final = 0.25
# 64 vectors of 4,000 numbers as JSON text are 6 MB.
_MAX_ANSWER_BYTES: Final = 64 * 2**20
_TRANSIENT: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


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

    def embed(self, texts: Sequence[str], *, stop: Callable[[], bool] | None = None) -> NDArray[np.float32]:
        """See `EmbeddingProvider.embed`.

        Raises:
            EmbeddingError: the endpoint gave no vectors, however often it was asked.
            EmbeddingRefused: it never will, as things are set.
            BudgetSpent: the run may send no more.
            EmbeddingCancelled: `stop` said so.
        """
        import numpy as np  # noqa: PLC0415 - as in the embedded model

        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        self._spend(sum(self.count_tokens(text) for text in texts))
        # A thread of its own, because the caller's may have a running loop already.
        with ThreadPoolExecutor(1, thread_name_prefix="embeddings") as pool:
            rows = pool.submit(lambda: asyncio.run(self._embed_all(list(texts), stop))).result()
        vectors = np.asarray(rows, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or (norms == 0).any():
            msg = f"{self.shown} gave a vector that has no direction (zero, or not finite) for {self.model}"
            raise EmbeddingRefused(msg)
        return np.asarray(vectors / norms, dtype=np.float32)

    def _spend(self, tokens: int) -> None:
        with self._lock:
            if tokens > self._left:
                msg = (
                    f"this run may send {self._settings.max_run_tokens:,} tokens to {self.shown}, and "
                    f"{self._left:,} are left, but the next texts have {tokens:,}: run `omniops embed --missing` "
                    "again for the rest, or raise OMNIOPS_EMBEDDINGS_MAX_RUN_TOKENS"
                )
                raise BudgetSpent(msg)
            self._left -= tokens

    async def _embed_all(self, texts: list[str], stop: Callable[[], bool] | None) -> list[list[float]]:
        size = self._settings.batch
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
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

            async def one(batch: list[str]) -> list[list[float]]:
                async with limit:
                    return await self._ask(session, batch)

            tasks = [asyncio.create_task(one(batch)) for batch in batches]
            try:
                await self._wait(tasks, stop)
                return [row for task in tasks for row in task.result()]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self, tasks: Sequence[asyncio.Task[Any]], stop: Callable[[], bool] | None) -> None:
        waiting: set[asyncio.Task[Any]] = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=_STOP_LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in done:
                task.result()
            if stop is not None and stop():
                msg = "embedding was stopped before its end; what is stored stays"
                raise EmbeddingCancelled(msg)

    async def _ask(self, session: aiohttp.ClientSession, texts: list[str]) -> list[list[float]]:
        """One request, until it is answered or has been tried often enough."""
        wait = 0.0
        for attempt in range(1, self._settings.max_tries + 1):
            if wait:
                await asyncio.sleep(wait)
            why, asked = "", None
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    status, headers, body = await self._post(session, texts)
                if status == 200:
                    return self._checked(body, len(texts))
                why, asked = f"answered {status}", self._judge(status, headers, body)
            except TimeoutError:
                why = f"gave no answer within {self._settings.timeout_seconds:g} s"
            except (aiohttp.ClientError, OSError) as error:
                why = self._reason(error)
            if attempt == self._settings.max_tries:
                break
            backoff = min(_MAX_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2 ** (attempt - 1))
            wait = asked if asked is not None else backoff * _chance.uniform(0.5, 1.0)
            logger.info("%s %s; asked again in %.1f s (try %d)", self.shown, why, wait, attempt)
        msg = f"{self.shown} {why} ({self._settings.max_tries} tries): the rest is embedded by a later run"
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
