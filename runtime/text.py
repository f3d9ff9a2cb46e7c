"""Class names -> prompts -> token ids -> text embeddings; each prompt is encoded once and cached."""

from __future__ import annotations

import contextlib
import hashlib
import html
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import numpy.typing as npt
import tokenizers

from runtime.errors import BundleError, EngineError, InputError, OutputError
from runtime.files import atomic_file

SOT = "<|startoftext|>"
EOT = "<|endoftext|>"
_SPECIAL = re.compile(f"{re.escape(SOT)}|{re.escape(EOT)}")

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def clean(text: str) -> str:
    """The text as the encoder was trained to see it: mended Unicode, no HTML entities, lower case.

    Example:
        >>> clean("  A &amp;amp; B\\n“Ｃ” ")
        'a & b "c"'
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@dataclass(frozen=True)
class Tokenized:
    """One text: `ids` from SOT to EOT, however long, and the words that the tokenizer does not know."""

    ids: tuple[int, ...]
    unknown: tuple[str, ...]


class Tokenizer:
    """The bundle's `tokenizer.json` with the official cleaning, truncation and padding."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, context_length: int = 77) -> None:
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        for token in (SOT, EOT):
            if token not in vocabulary:
                raise BundleError(f"the tokenizer has no token {token}; rebuild the bundle")
        self.sot, self.eot = vocabulary[SOT], vocabulary[EOT]
        if self.eot != (largest := max(vocabulary.values())):  # the text encoder pools at the largest id
            raise BundleError(f"{EOT} must have the largest id {largest}, got {self.eot}; rebuild the bundle")
        self.context_length = context_length
        self._tokenizer = tokenizer
        # `_split_specials` finds the special tokens: the library would also find those that the official
        # pattern takes for punctuation ("!<|endoftext|>").
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._unknown = vocabulary.get(getattr(tokenizer.model, "unk_token", None) or "")

    @classmethod
    def from_file(cls, path: Path | str, context_length: int = 77) -> Tokenizer:
        """Reads a `tokenizer.json`.

        Raises:
            BundleError: the file is missing, is no tokenizer, or lacks the special tokens.
        """
        try:
            tokenizer = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"cannot read the tokenizer {path} ({error}); rebuild the bundle") from error
        return cls(tokenizer, context_length)

    def tokenize(self, text: str) -> Tokenized:
        """Cleans and splits one text; nothing is cut off, so `len(ids) > context_length` is "too long"."""
        ids, unknown = [self.sot], []
        for piece in _split_specials(clean(text)):
            if piece in (SOT, EOT):
                ids.append(self.sot if piece == SOT else self.eot)
                continue
            encoding = self._tokenizer.encode(piece, add_special_tokens=False)
            ids += encoding.ids
            for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if index == self._unknown:
                    unknown.append(_word_around(piece, start, end))
        return Tokenized((*ids, self.eot), tuple(dict.fromkeys(unknown)))

    def encode(self, texts: Sequence[str]) -> Ids:
        """(K, context_length) int64, padded with 0. A longer text is cut and its last id becomes EOT.

        Raises:
            InputError: a word is not in the tokenizer's vocabulary.
        """
        rows = np.zeros((len(texts), self.context_length), np.int64)
        for row, text in zip(rows, texts, strict=True):
            tokenized = self.tokenize(text)
            if tokenized.unknown:
                raise InputError(self.unknown_message(repr(text), tokenized.unknown))
            ids = tokenized.ids[: self.context_length]
            row[: len(ids)] = ids
            if len(tokenized.ids) > self.context_length:
                row[-1] = self.eot
        return rows

    def unknown_message(self, where: str, unknown: Sequence[str]) -> str:
        listed = ", ".join(repr(word) for word in unknown)
        known = sorted(word for word in self._tokenizer.get_vocab() if word[0].isalnum())
        others = f"it knows only {', '.join(known)}" if len(known) <= 100 else "use other words"
        return f"{where}: the tokenizer does not know {listed}; {others}"


@dataclass(eq=False)
class TextEmbedder:
    """Class names -> (K, 2, C) float32 text embeddings (global and local half), encoding only new prompts.

    Attributes:
        tokenizer: the bundle's tokenizer.
        encode: the text encoder: ids (k, context_length) int64 -> (k, 2, C) float32, unit norm over C.
        prompt_template: text with one `{}` for the class name.
        first_synonym: use only what stands before the first ", " of a class name (CAT-Seg's rule).
        cache_key: hash of text encoder and tokenizer; embeddings of another key are never used.
        cache_dir: folder of the disk cache, or None for none.
        batch: prompts a call of `encode`.
    """

    tokenizer: Tokenizer
    encode: Callable[[Ids], Floats]
    _: KW_ONLY
    prompt_template: str
    first_synonym: bool
    cache_key: str
    cache_dir: Path | None
    batch: int = 16
    _memory: dict[str, Floats] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.prompt_template.count("{}") != 1:
            raise InputError(f"prompt {self.prompt_template!r} must hold {{}} once, for the class name")

    def prompt(self, name: str) -> str:
        """The text that is encoded for a class."""
        return self.prompt_template.replace("{}", name.split(", ")[0] if self.first_synonym else name)

    def embed(self, names: Sequence[str]) -> Floats:
        """(K, 2, C) float32, C-contiguous, one row a name.

        Raises:
            InputError: no names, a prompt longer than the context, or a word the tokenizer does not know.
            EngineError: the text encoder's output is not (k, 2, C).
        """
        if not names:
            raise InputError("no class names given; expected at least one")
        prompts = {name: self.prompt(name) for name in names}
        missing = {prompt: name for name, prompt in prompts.items() if not self._cached(prompt)}
        for prompt, name in missing.items():
            tokenized = self.tokenizer.tokenize(prompt)
            if tokenized.unknown:
                raise InputError(self.tokenizer.unknown_message(f"class {name!r}", tokenized.unknown))
            if (count := len(tokenized.ids)) > self.tokenizer.context_length:
                raise InputError(
                    f"class {name[:60]!r} makes a prompt of {count} tokens, "
                    f"the text encoder takes {self.tokenizer.context_length}; use a shorter name"
                )
        queue = list(missing)
        for start in range(0, len(queue), self.batch):
            chunk = queue[start : start + self.batch]
            halves = np.asarray(self.encode(self.tokenizer.encode(chunk)), dtype=np.float32)
            if halves.ndim != 3 or halves.shape[:2] != (len(chunk), 2):
                raise EngineError(
                    f"the text encoder gave shape {halves.shape} for {len(chunk)} prompts, "
                    f"expected ({len(chunk)}, 2, C); rebuild the bundle"
                )
            for prompt, half in zip(chunk, halves, strict=True):
                self._store(prompt, half.copy())
        return np.ascontiguousarray(np.stack([self._memory[prompts[name]] for name in names]))

    def save(self, path: Path, names: Sequence[str]) -> None:
        """Writes the embeddings of `names` for `preload`: `text/<vocabulary>.npz` of a bundle.

        Raises:
            OutputError: `path` cannot be written. Otherwise as `embed`.
        """
        embeddings = self.embed(names)
        try:
            _write_npz(
                path,
                names=list(names),
                embeddings=embeddings,
                prompt=self.prompt_template,
                first_synonym=self.first_synonym,
                cache_key=self.cache_key,
            )
        except OSError as error:
            raise OutputError(f"cannot write text embeddings to {path}: {error.strerror}") from error

    def preload(self, path: Path) -> int:
        """Takes over the embeddings that `save` wrote; returns how many.

        None (0) when they were made with another text encoder, tokenizer or prompt.

        Raises:
            BundleError: the file is missing, unreadable or inconsistent.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                names = [str(name) for name in stored["names"]]
                embeddings = stored["embeddings"]
                made_with = (str(stored["cache_key"]), str(stored["prompt"]), bool(stored["first_synonym"]))
        except Exception as error:  # a damaged zip archive raises anything
            raise BundleError(f"cannot read text embeddings {path} ({error}); rebuild the bundle") from error
        if embeddings.ndim != 3 or embeddings.shape[:2] != (len(names), 2):
            raise BundleError(
                f"text embeddings {path} have shape {embeddings.shape}, expected ({len(names)}, 2, C); "
                "build the bundle again"
            )
        if made_with != (self.cache_key, self.prompt_template, self.first_synonym):
            return 0
        for name, halves in zip(names, embeddings.astype(np.float32), strict=True):
            self._memory[self.prompt(name)] = halves
        return len(names)

    def _cached(self, prompt: str) -> bool:
        if prompt not in self._memory and self.cache_dir is not None:
            try:
                with np.load(self._cache_file(self.cache_dir, prompt), allow_pickle=False) as stored:
                    made_with = (str(stored["cache_key"]), str(stored["prompt"]))
                    embedding: Floats = stored["embedding"]
            except Exception:  # a damaged zip archive raises anything; the file is then written anew
                return False
            usable = embedding.ndim == 2 and len(embedding) == 2 and embedding.dtype == np.float32
            # Two prompts may share the short hash in the file's name.
            if made_with == (self.cache_key, prompt) and usable and np.isfinite(embedding).all():
                self._memory[prompt] = embedding
        return prompt in self._memory

    def _store(self, prompt: str, embedding: Floats) -> None:
        self._memory[prompt] = embedding
        if self.cache_dir is not None:
            # A cache that cannot be written costs time, not the result.
            with contextlib.suppress(OSError):
                self.cache_dir.mkdir(parents=True, exist_ok=True)
                path = self._cache_file(self.cache_dir, prompt)
                _write_npz(path, embedding=embedding, prompt=prompt, cache_key=self.cache_key)

    def _cache_file(self, folder: Path, prompt: str) -> Path:
        digest = hashlib.sha256(f"{self.cache_key}\0{prompt}".encode("utf-8", "surrogatepass")).hexdigest()
        return folder / f"{digest[:16]}.npz"


def _write_npz(path: Path, **arrays: Any) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _split_specials(text: str) -> Iterator[str]:
    """Pieces of text and special tokens, in order.

    The official pattern scans from left to right, so a special token that follows punctuation is swallowed
    by the run of punctuation and is none.
    """
    done = 0
    for match in _SPECIAL.finditer(text):
        start = match.start()
        before = text[start - 1] if start > done else " "
        if not (before.isspace() or unicodedata.category(before)[0] in "LN"):
            continue
        if start > done:
            yield text[done:start]
        yield match.group()
        done = match.end()
    if done < len(text):
        yield text[done:]


def _word_around(text: str, start: int, end: int) -> str:
    """The whole word of which `text[start:end]` is a part."""
    return text[text.rfind(" ", 0, start) + 1 : end] + text[end:].split(" ")[0]
