"""Embeddings: texts become vectors, by a model that is chosen with one setting.

`provider_from_settings` gives the provider of `OMNIOPS_EMBEDDINGS`: the embedded model (no network, no key), any
OpenAI-compatible endpoint, or none. Whoever embeds or searches sees `EmbeddingProvider` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from resources.settings import EmbeddingSettings

    Vectors = NDArray[np.float32]
    Keep = Callable[[Sequence[int], Vectors], None]

# pgvector's HNSW takes half-precision vectors up to this width.
MAX_DIMENSIONS = 4_000


class EmbeddingError(RuntimeError):
    """Texts could not be embedded; the message says by whom, why and what to do, and has no key in it."""


class EmbeddingRefused(EmbeddingError):
    """Trying again would not help: a wrong key, a wrong model, vectors of another width than agreed."""


class EmbeddingCancelled(EmbeddingError):
    """The caller asked to stop."""


class BudgetSpent(EmbeddingError):
    """The run has sent as much as it may; what is left is embedded by the next one."""


class EmbeddingProvider(Protocol):
    """A model, wherever it runs.

    Attributes:
        name: of the provider: `minilm`, `openai`.
        model: id under which its vectors are stored. Vectors of two ids are never compared.
        dimensions: width of its vectors.
        max_tokens: longest text that it reads whole, special tokens included.
        batch_size: texts that are best given at once.
    """

    name: str
    model: str
    dimensions: int
    max_tokens: int
    batch_size: int

    def count_tokens(self, text: str) -> int:
        """Length of a text in the model's tokens, special tokens included; never too few."""

    def embed(
        self, texts: Sequence[str], *, stop: Callable[[], bool] | None = None, keep: Keep | None = None
    ) -> Vectors:
        """One unit vector for each text, in order.

        Args:
            texts: what is to be embedded; longer ones than `max_tokens` are cut.
            stop: asked now and then: True ends it within seconds.
            keep: given numbers of texts and their vectors as they come, each once, from any thread; where it ends
                with an error, those are what there is, and they were paid for.

        Raises:
            EmbeddingError: it could not be done.
        """


def provider_from_settings(settings: EmbeddingSettings | None = None) -> EmbeddingProvider | None:
    """The configured provider; None where there is none (`OMNIOPS_EMBEDDINGS=none`).

    Nothing is loaded or asked before the first text.

    Raises:
        InvalidSetting: a setting cannot be meant, or one is missing.
    """
    from resources.settings import EmbeddingSettings as Settings  # noqa: PLC0415 - at run time only

    settings = settings or Settings.from_environment()
    if settings.provider == "none":
        return None
    if settings.provider == "openai":
        from resources.content.embeddings.openai_compatible import OpenAICompatible  # noqa: PLC0415 - brings aiohttp

        return OpenAICompatible.from_settings(settings)
    from resources.content.embeddings.minilm import MiniLM  # noqa: PLC0415 - brings onnxruntime

    return MiniLM.shared(settings.threads)
