"""The tokeniser of BERT's lower-case English models, from its word list.

The word list is that of sentence-transformers/all-MiniLM-L6-v2 (Apache License 2.0). The packaged model comes without
it, and nothing is downloaded when the program runs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

_WORDS = Path(__file__).parent / "minilm_vocabulary.txt"


@cache
def tokeniser() -> Any:
    """The tokeniser, which adds [CLS] and [SEP] and neither cuts nor pads. Shared: do not configure it.

    Returns:
        A `tokenizers.Tokenizer`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: PLC0415 - 50 ms

    words = _WORDS.read_text(encoding="utf-8").splitlines()
    tokens = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]", max_input_chars_per_word=100))  # noqa: S106 - no password
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(name, tokens[name]) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return made


def count_tokens(text: str) -> int:
    """Length of a text in tokens, [CLS] and [SEP] included."""
    return len(tokeniser().encode(text).ids)
