"""A process that reads pages for `resources.content.pool`: `python -m resources.content.worker`.

It reads requests from its standard input and answers on its standard output, one after the other. A page that takes
too long, or too much memory, ends the process and nothing else: the limits are the operating system's, so that code
which hangs in C is ended too.

A frame is four bytes of length (big endian) and as many bytes of JSON; a request's page follows it as bytes. JSON and
not pickle, because the process that reads the answers must not trust the one that has read hostile pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

from resources.content.extraction import Extracted, extract, survey
from resources.content.fingerprints import fingerprint
from resources.crawler.page import parse

if TYPE_CHECKING:
    from collections.abc import Mapping

# Exit status of a process whose page needed more memory than it may have.
OUT_OF_MEMORY = 86
# Wall time for each second of CPU time that a page may take: the machine may be busy, and waiting is not hanging.
_WALL_SECONDS_PER_CPU_SECOND = 6.0
_PR_SET_PDEATHSIG = 1


def write_frame(stream: IO[bytes], message: Mapping[str, Any], body: bytes = b"") -> None:
    """Send a message, and the bytes that belong to it."""
    data = json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    stream.write(len(data).to_bytes(4, "big") + data)
    if body:
        stream.write(body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next message; None where the other side has ended."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    data = stream.read(int.from_bytes(head, "big"))
    message: dict[str, Any] = json.loads(data)
    return message


def _limit_process(memory_bytes: int) -> None:
    """Bound the memory, end with the parent, and leave the processor to those who fetch."""
    with contextlib.suppress(ValueError, OSError):  # not every system has the limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        os.nice(5)
    # Ctrl-C goes to the whole group of a terminal: the crawl decides what is still read.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _set_alarm(cpu_seconds: float) -> None:
    """End this process if the page is not read by then; 0 takes the alarm away."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, cpu_seconds * _WALL_SECONDS_PER_CPU_SECOND)


def _answer(extracted: Extracted) -> dict[str, Any]:
    values = asdict(extracted)
    if extracted.published is not None:
        values["published"] = extracted.published.isoformat()
    return {**values, "fingerprint": asdict(fingerprint(extracted.text))}


def _visible(body: bytes, url: str, content_type: str | None, charset: str | None) -> Extracted:
    """All visible text, read in bounded pieces: for a page that the extractor could not read."""
    page = parse(body, url, content_type, charset, with_text=True)
    return Extracted(
        title=page.title,
        description=page.description,
        canonical_url=page.canonical_url,
        language=page.lang,
        text=page.text,
        markdown=page.text,
        word_count=len(page.text.split()),
        cleaned=page.cleaned,
        truncated=page.truncated,
    )


def _serve(requests: IO[bytes], answers: IO[bytes], page_seconds: float) -> None:
    sets: dict[int, frozenset[int]] = {0: frozenset()}
    write_frame(answers, {"ready": True})
    while (request := read_frame(requests)) is not None:
        body = requests.read(request["size"])
        url, content_type, charset = request["url"], request["content_type"], request["charset"]
        if "define" in request:
            sets[request["boilerplate"]] = frozenset(request["define"])
        _set_alarm(page_seconds)
        if request["task"] == "survey":
            answer: dict[str, Any] = {"blocks": list(survey(body, url, content_type=content_type, charset=charset))}
        elif request["task"] == "visible":
            answer = _answer(_visible(body, url, content_type, charset))
        else:
            known = sets[request["boilerplate"]]
            answer = _answer(extract(body, url, content_type=content_type, charset=charset, boilerplate=known))
        _set_alarm(0)
        write_frame(answers, answer)


def main() -> int:
    """Read pages until the other side ends. Arguments: bytes of memory, CPU seconds for a page."""
    memory_bytes, page_seconds = int(sys.argv[1]), float(sys.argv[2])
    # Whatever a library prints must not stand between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit_process(memory_bytes)
    try:
        _serve(sys.stdin.buffer, answers, page_seconds)
    except MemoryError:
        # Nothing that this process holds can be relied on any more; it leaves without tidying up.
        os._exit(OUT_OF_MEMORY)
    except BrokenPipeError:
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
