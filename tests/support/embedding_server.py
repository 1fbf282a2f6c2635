"""An OpenAI-compatible endpoint on loopback: real HTTP, counts what it is asked, and misbehaves when told to."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from aiohttp import web

from tests.support.site import serve_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = "sk-whoever-sees-this-pays-for-it"


def vector_of(text: str, dimensions: int) -> list[float]:
    """Words in a bag, each in a place by its hash: the same text has the same vector, near texts near ones."""
    vector = np.zeros(dimensions)
    for word in text.lower().split():
        vector[int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big") % dimensions] += 1
    if not vector.any():
        vector[0] = 1
    return [float(number) for number in vector]


@dataclass
class EmbeddingServer:
    """The endpoint.

    Attributes:
        url: for `OMNIOPS_EMBEDDINGS_URL`.
        dimensions: of its vectors.
        asked: the texts of each request, in order of arrival, refused ones too.
        headers: of each request.
        answer: status, headers and body of the nth request, from 0; None: vectors.
        hang_seconds: how long it says nothing.
        hold_after: after so many requests it says nothing until this is raised; None: it answers all.
        at_once: most requests that were under way together.
    """

    url: str
    dimensions: int = 48
    asked: list[list[str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answer: Callable[[int, list[str]], tuple[int, dict[str, str], Any] | None] = lambda _n, _t: None
    hang_seconds: float = 0.0
    hold_after: int | None = None
    at_once: int = 0
    under_way: int = 0

    def environment(self, model: str, **settings: object) -> dict[str, str]:
        """What sets it as the provider; `batch=5` is `OMNIOPS_EMBEDDINGS_BATCH`."""
        given = {"url": self.url, "model": model, "dimensions": self.dimensions, "allow_private": 1, **settings}
        return {
            "OMNIOPS_EMBEDDINGS": "openai",
            **{f"OMNIOPS_EMBEDDINGS_{name.upper()}": str(value) for name, value in given.items()},
        }

    @property
    def texts(self) -> list[str]:
        return [text for texts in self.asked for text in texts]

    def vectors(self, texts: list[str]) -> dict[str, Any]:
        data = [{"index": n, "embedding": vector_of(text, self.dimensions)} for n, text in enumerate(texts)]
        # In any order: the index says which is which.
        return {"data": data[::-1], "model": "test"}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.under_way += 1
        self.at_once = max(self.at_once, self.under_way)
        try:
            texts = (await request.json())["input"]
            number = len(self.asked)
            self.asked.append(texts)
            self.headers.append(dict(request.headers))
            if self.hang_seconds:
                await asyncio.sleep(self.hang_seconds)
            while self.hold_after is not None and number >= self.hold_after:  # noqa: ASYNC110 - set in another thread
                await asyncio.sleep(0.02)
            told = self.answer(number, texts)
            if told is None:
                return web.json_response(self.vectors(texts))
            status, headers, body = told
            if status == 0:  # breaks the connection
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            content = body if isinstance(body, str) else json.dumps(body)
            return web.Response(status=status, headers=headers, text=content, content_type="application/json")
        finally:
            self.under_way -= 1


@contextmanager
def serve_embeddings(**settings: Any) -> Iterator[EmbeddingServer]:
    """The endpoint, for the duration of the block."""
    with serve_site() as site:
        server = EmbeddingServer(f"{site.url}v1", **settings)
        site.pages["/v1/embeddings"] = server.handle
        yield server
