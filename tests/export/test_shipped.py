"""Which weights come with the project, and what lies beside weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.presets import model_config
from export.shipped import CLASSES, shipped_weights, trained_classes
from runtime.errors import WeightsError


def test_only_an_unchanged_text_encoder_fits() -> None:
    folder = shipped_weights(model_config("tiny", ["geometry.stride=64"]))
    assert folder is not None
    assert trained_classes(folder)[:3] == ("table", "wall", "floor")
    assert shipped_weights(model_config("tiny", ["text.vocab_size=49408"])) is None
    assert shipped_weights(model_config("vits", [])) is None


def test_a_folder_without_a_list(tmp_path: Path) -> None:
    assert trained_classes(tmp_path) == trained_classes(None) == ()


def test_a_damaged_list_is_reported(tmp_path: Path) -> None:
    (tmp_path / CLASSES).write_bytes(b"wall\n\xff\xfe")
    with pytest.raises(WeightsError, match="expected one class name a line in UTF-8"):
        trained_classes(tmp_path)
