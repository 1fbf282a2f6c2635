"""Pages in pieces: a model's length is respected, whatever stands on the page, and no page takes for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resources.content.chunks import MAX_CHUNKS, chunk_page
from resources.content.embeddings.openai_compatible import OpenAICompatible
from resources.content.embeddings.wordpiece import count_tokens
from resources.settings import EmbeddingSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from resources.content.chunks import ChunkedPage

_ENDPOINT = OpenAICompatible(EmbeddingSettings(provider="openai", model="m", dimensions=8))


def _cut(markdown: str, max_tokens: int = 256, count: Callable[[str], int] = count_tokens) -> ChunkedPage:
    return chunk_page(title="Help", markdown=markdown, text=markdown, max_tokens=max_tokens, count_tokens=count)


@pytest.mark.parametrize(("max_tokens", "count"), [(256, count_tokens), (64, _ENDPOINT.count_tokens)])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param("x" * 50_000, id="a word without an end"),
        pytest.param("```\n" + "total = add(prices[0], prices[1]);\n" * 300 + "```", id="a code block"),
        pytest.param("漢字とかな交じりの長い文です。" * 300, id="Chinese characters"),
        pytest.param("ภาษาไทยไม่มีช่องว่าง" * 300, id="no spaces at all"),
        pytest.param("😀" * 6_000, id="emoji"),
    ],
)
def test_no_piece_is_longer_than_the_model_reads(body: str, max_tokens: int, count: Callable[[str], int]) -> None:
    found = _cut(f"# {'A long heading ' * 60}\n\n{body}", max_tokens, count)
    assert len(found.chunks) > 1
    assert all(count(chunk.model_input) <= max_tokens for chunk in found.chunks)
    # A word that the model does not know is one token of any length: a passage has a bound of its own.
    assert all(len(chunk.text) <= 16 * max_tokens for chunk in found.chunks)
    # Whatever follows the heading is in some piece: nothing falls between two.
    joined = "".join(chunk.text for chunk in found.chunks)
    assert len(joined.replace("\n", "").replace(" ", "")) >= len(body.replace("\n", "").replace(" ", "")) - 20


@pytest.mark.parametrize(
    "page",
    [
        pytest.param("[" * 300_000, id="brackets"),
        pytest.param("[\\[" * 100_000, id="escaped brackets"),
        pytest.param("![a](" * 60_000, id="images without an end"),
        pytest.param("[a](" + "x" * 300_000, id="an address without an end"),
        pytest.param("[" + "[x]" * 100_000, id="brackets in a bracket without an end"),
        pytest.param("[[x" * 100_000, id="brackets that nothing closes"),
        pytest.param("# a" + " " * 100_000 + "x", id="spaces in a heading"),
        pytest.param("# " + "#" * 300_000 + "x", id="closing marks of a heading"),
    ],
)
def test_no_page_takes_for_ever(page: str) -> None:
    """Each took a time that grew with the square or the cube of its length: hours, with nothing to interrupt it."""
    found = _cut(f"{page}\n\nThe end of the page.")
    assert found.cut or "The end of the page." in found.chunks[-1].text


def test_a_very_long_section_is_cut_between_paragraphs() -> None:
    paragraphs = [f"Paragraph {number} says something of its own about returns and refunds." for number in range(900)]
    found = _cut("# Returns\n\n" + "\n\n".join(paragraphs), max_tokens=512)
    text = "\n".join(chunk.text for chunk in found.chunks)
    assert not found.cut
    assert len(found.chunks) < MAX_CHUNKS
    assert [paragraph for paragraph in paragraphs if paragraph not in text] == []


@pytest.mark.parametrize(
    ("heading", "said"),
    [
        ("C#", "C#"),
        ("Returns ##", "Returns"),
        ("**Bold** [link](https://x.example/) and ![image](/a.png)", "Bold link and image"),
        ("The `--force` option", "The --force option"),
    ],
)
def test_headings_lose_their_markup_and_no_more(heading: str, said: str) -> None:
    assert _cut(f"# {heading}\n\nSome text.").chunks[0].heading == f"Help > {said}"


def test_addresses_of_links_are_left_out_of_pieces() -> None:
    page = 'See [our *terms*](https://x.example/a_(b) "Terms"), ![a photo](/p.png), [[1]](/n) and [no link] (here).'
    assert _cut(page).chunks[0].text == "See our *terms*, a photo, [1] and [no link] (here)."
