"""A receiver of webhooks: a real HTTP server on loopback that checks signatures, and answers as it is told."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from resources.alerts import verify_signature
from resources.secret import Secret
from tests.support.site import serve_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = Secret("a secret of the receivers")
# In the path, as Slack has it: whoever sees it can write there.
TOKEN = "T0000-B0000-whoever-sees-me-can-write-there"


@dataclass
class Message:
    """What arrived."""

    headers: dict[str, str]
    body: bytes
    signed: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def delivery(self) -> str:
        return self.headers["X-OmniOps-Delivery"]


@dataclass
class Receiver:
    """A receiver.

    Attributes:
        url: where messages go; it has a secret in it.
        messages: all that arrived, whatever the answer was.
        answer: status and headers for the nth message, from 0.
        hang_seconds: how long it says nothing.
    """

    url: str
    messages: list[Message] = field(default_factory=list)
    answer: Callable[[int], tuple[int, dict[str, str]]] = lambda _: (200, {})
    hang_seconds: float = 0.0

    @property
    def accepted(self) -> list[Message]:
        return [m for n, m in enumerate(self.messages) if self.answer(n)[0] < 300]

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(m.json["event"], m.json["alert"]["episode"]) for m in self.accepted]

    async def receive(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = dict(request.headers)
        self.messages.append(Message(headers, body, verify_signature(SECRET, headers, body)))
        status, extra = self.answer(len(self.messages) - 1)
        if self.hang_seconds:
            await asyncio.sleep(self.hang_seconds)
        return web.Response(status=status, headers=extra)


@contextmanager
def serve_receiver() -> Iterator[Receiver]:
    """Serve a receiver, in a thread, until the block ends."""
    with serve_site() as site:
        receiver = Receiver(f"{site.url}services/{TOKEN}")
        site.pages[f"/services/{TOKEN}"] = receiver.receive
        yield receiver
