"""The weights that come with the project, and what else may lie in a folder of weights."""

from __future__ import annotations

from pathlib import Path

from export.presets import PRESETS, ModelConfig
from runtime.errors import WeightsError

WEIGHTS = Path(__file__).parent / "weights"
CLASSES = "classes.txt"  # the names that the model was trained for, one a line
EXAMPLE = "example.jpg"  # a picture of the kind that it was trained on


def shipped_weights(config: ModelConfig) -> Path | None:
    """The preset's folder under `export/weights`; None if it has none or the text encoder was changed."""
    folder = WEIGHTS / config.name
    return folder if folder.is_dir() and config.text == PRESETS[config.name].text else None


def trained_classes(weights_dir: Path | None) -> tuple[str, ...]:
    """The lines of `classes.txt` in a folder of weights; none if it is not there.

    Raises:
        WeightsError: the file cannot be read.
    """
    if weights_dir is None or not (file := weights_dir / CLASSES).is_file():
        return ()
    try:
        return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"cannot read {file} ({error}); expected one class name a line in UTF-8") from error
