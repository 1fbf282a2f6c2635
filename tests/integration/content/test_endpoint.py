"""An endpoint that misbehaves: what is tried again, what is refused, what is never shown."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from resources.content.embeddings import EmbeddingCancelled, EmbeddingError, EmbeddingRefused
from resources.content.embeddings.openai_compatible import BudgetSpent, OpenAICompatible
from resources.secret import Secret
from resources.settings import EmbeddingSettings, InvalidSetting
from tests.support.embedding_server import KEY, EmbeddingServer, serve_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = [f"text number {n}" for n in range(20)]


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with serve_embeddings() as served:
        yield served


def provider_of(server: EmbeddingServer, **settings: Any) -> OpenAICompatible:
    given = {
        "dimensions": 48,
        "allow_private": True,
        "batch": 4,
        "concurrency": 2,
        "api_key": Secret(KEY),
        **settings,
    }
    return OpenAICompatible(EmbeddingSettings(provider="openai", url=server.url, model="test", **given))


def test_vectors_come_in_the_order_of_the_texts_from_bounded_requests(server: EmbeddingServer) -> None:
    server.hang_seconds = 0.05
    vectors = provider_of(server).embed(TEXTS)
    assert vectors.shape == (20, 48)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert sorted(len(texts) for texts in server.asked) == [4] * 5
    assert server.at_once == 2
    alone = provider_of(server).embed([TEXTS[13]])[0]
    assert np.allclose(vectors[13], alone)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("answer", [(429, {"Retry-After": "0"}, {}), (500, {}, "x"), (503, {}, {}), (0, {}, {})])
def test_trouble_that_passes_is_tried_again(server: EmbeddingServer, answer: Any) -> None:
    server.answer = lambda number, _texts: answer if number < 2 else None
    assert provider_of(server).embed(TEXTS[:3]).shape == (3, 48)
    assert len(server.asked) == 3


def test_retry_after_is_waited_for(server: EmbeddingServer) -> None:
    server.answer = lambda number, _texts: (429, {"Retry-After": "1"}, {}) if number == 0 else None
    started = time.monotonic()
    provider_of(server).embed(TEXTS[:1])
    assert time.monotonic() - started >= 1


def test_trouble_that_stays_is_an_error_that_says_so(server: EmbeddingServer) -> None:
    server.answer = lambda _number, _texts: (500, {}, "x")
    with pytest.raises(EmbeddingError, match=r"answered 500 \(2 tries\)"):
        provider_of(server, max_tries=2).embed(TEXTS[:1])
    server.answer = lambda _number, _texts: (429, {"Retry-After": "86400"}, {})
    with pytest.raises(EmbeddingError, match="asks for a pause of 86,400 s"):
        provider_of(server).embed(TEXTS[:1])


def _data(*vectors: list[Any]) -> dict[str, Any]:
    return {"data": [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (_data([1.0] * 48), "1 vectors for 2 texts"),
        (_data(*[[1.0] * 48] * 3), "3 vectors for 2 texts"),
        (_data(*[[1.0] * 47] * 2), "vectors of 47 dimensions"),
        (_data([1.0] * 48, [float("nan")] * 48), "no finite number"),
        (_data([1.0] * 48, [float("inf")] * 48), "no finite number"),
        (_data([1.0] * 48, ["1"] * 48), "no finite number"),
        (_data([1.0] * 48, [0.0] * 48), "no direction"),
        ({"data": [{"index": 0, "embedding": [1.0] * 48}] * 2}, "2 vectors for 2 texts"),
        ("<html>", "no list of embeddings"),
        ({}, "no list of embeddings"),
    ],
)
def test_an_answer_that_is_wrong_is_refused(server: EmbeddingServer, body: Any, says: str) -> None:
    server.answer = lambda _number, _texts: (200, {}, body)
    with pytest.raises(EmbeddingRefused, match=says):
        provider_of(server).embed(TEXTS[:2])
    assert len(server.asked) == 1


def test_the_key_is_never_shown(server: EmbeddingServer) -> None:
    server.answer = lambda _number, _texts: (400, {}, {"error": {"message": f"bad key {KEY} given"}})
    provider = provider_of(server)
    with pytest.raises(EmbeddingRefused) as caught:
        provider.embed(TEXTS[:1])
    assert KEY not in str(caught.value)
    assert KEY not in repr(provider) + repr(provider._settings)


def test_a_private_address_needs_permission(server: EmbeddingServer) -> None:
    with pytest.raises(EmbeddingRefused, match="ALLOW_PRIVATE"):
        provider_of(server, allow_private=False).embed(TEXTS[:1])
    assert not server.asked


def test_a_run_sends_no_more_than_it_may(server: EmbeddingServer) -> None:
    provider = provider_of(server, max_tokens=64, max_run_tokens=64)
    each = provider.count_tokens(TEXTS[0])
    provider.embed(TEXTS[:2])
    kept: list[int] = []
    with pytest.raises(BudgetSpent, match="may send 64 tokens"):
        provider.embed([TEXTS[0]] * 20, keep=lambda numbers, _: kept.extend(numbers))
    # What it may still send is sent, and not lost.
    assert sorted(kept) == list(range(64 // each - 2))
    assert len(server.texts) == 64 // each
    with pytest.raises(BudgetSpent):
        provider.embed(TEXTS[:1])
    assert len(server.texts) == 64 // each


def test_a_text_that_no_run_may_send_is_refused_and_not_sent(server: EmbeddingServer) -> None:
    provider = provider_of(server, max_tokens=64, max_run_tokens=64)
    with pytest.raises(EmbeddingRefused, match=r"a text has \d+ tokens.*no run could embed it.*MAX_RUN_TOKENS"):
        provider.embed(["word " * 100])
    assert not server.asked


@pytest.mark.parametrize(("answer", "sent"), [((500, {}, "x"), 2), ((0, {}, {}), 1)])
def test_a_try_that_may_have_been_paid_for_counts_and_one_that_was_refused_does_not(
    server: EmbeddingServer, answer: Any, sent: int
) -> None:
    text = "word " * 30
    provider = provider_of(server, max_tokens=64, max_run_tokens=64)
    assert 32 < provider.count_tokens(text) <= 64
    server.answer = lambda number, _texts: answer if number == 0 else None
    if sent == 2:
        provider.embed([text])
    else:  # the connection broke: whether it was paid for is not known
        with pytest.raises(EmbeddingError, match=r"broke the connection .*may send no more \(1 tries\)"):
            provider.embed([text])
    assert len(server.asked) == sent


def test_requests_that_are_under_way_are_not_thrown_away_when_another_fails(server: EmbeddingServer) -> None:
    server.hang_seconds = 0.3
    server.answer = lambda number, _texts: (401, {}, {}) if number == 1 else None
    kept: list[int] = []
    with pytest.raises(EmbeddingRefused, match="API_KEY is missing or wrong"):
        provider_of(server, concurrency=3).embed(TEXTS * 5, keep=lambda numbers, _: kept.extend(numbers))
    assert 3 <= len(server.asked) < 25
    assert len(kept) == 4 * (len(server.asked) - 1)


def test_a_slow_endpoint_is_given_up_and_a_stop_does_not_wait_for_it(server: EmbeddingServer) -> None:
    server.hang_seconds = 20
    with pytest.raises(EmbeddingError, match=r"no answer within 0\.3 s"):
        provider_of(server, timeout_seconds=0.3, max_tries=2).embed(TEXTS[:1])
    asked = threading.Event()
    threading.Timer(0.5, asked.set).start()
    with pytest.raises(EmbeddingCancelled):
        provider_of(server).embed(TEXTS[:1], stop=asked.is_set)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"OMNIOPS_EMBEDDINGS": "word2vec"}, "must be one of"),
        ({"OMNIOPS_EMBEDDINGS": "openai", "OMNIOPS_EMBEDDINGS_DIMENSIONS": "3"}, "MODEL must name"),
        ({"OMNIOPS_EMBEDDINGS": "openai", "OMNIOPS_EMBEDDINGS_MODEL": "m"}, "DIMENSIONS is 0"),
        ({"OMNIOPS_EMBEDDINGS_DIMENSIONS": "many"}, "whole number"),
        ({"OMNIOPS_EMBEDDINGS_URL": "ftp://x"}, "http"),
        (
            {
                "OMNIOPS_EMBEDDINGS": "openai",
                "OMNIOPS_EMBEDDINGS_MODEL": "m",
                "OMNIOPS_EMBEDDINGS_DIMENSIONS": "3",
                "OMNIOPS_EMBEDDINGS_MAX_RUN_TOKENS": "500",
            },
            "MAX_RUN_TOKENS is 500, but one piece of a page may have 512",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(environment: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidSetting, match=says):
        EmbeddingSettings.from_environment(environment)
