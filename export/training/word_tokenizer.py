"""The tiny model's tokenizer: one id for each word it was taught, in Hugging Face's format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers

from runtime.text import EOT, SOT

UNKNOWN = "<|unknown|>"
PADDING = "<|padding|>"


def write_word_tokenizer(texts: Iterable[str], destination: Path) -> int:
    """Writes a tokenizer that knows exactly the words of `texts`; returns the size of its vocabulary.

    Padding is id 0 and the end token has the largest id, as dino.txt's text encoder expects.
    """
    words = sorted({word for text in texts for word in text.lower().split()})
    vocabulary = {token: i for i, token in enumerate([PADDING, UNKNOWN, *words, SOT, EOT])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in (SOT, EOT)])
    tokenizer.save(str(destination))
    return len(vocabulary)
