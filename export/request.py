"""What is asked of a build, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export.precision import Half
from export.presets import ModelConfig
from export.reference import BuiltStage
from export.stages import Weights
from runtime.engines import Backend
from runtime.engines.base import Array
from runtime.manifest import EndToEnd, Precision, StageParity


@dataclass(frozen=True)
class Request:
    """What to build.

    Attributes:
        weights_dir: Folder of the weights, for what lies beside them; None: nothing does.
        halves: Precisions of the graphs that are made from the fp32 ones, used where they hold.
        strict: A stage where one does not hold ends the build.
        runs: Backend and precision pairs whose results are compared with torch.
        photo: (H, W, 3) uint8 RGB, the parity image.
        calibration: More images, on which the range of every value is measured.
        scenes: (H, W, 3) uint8 RGB images with (H, W) labels, indices into the trained class names.
        vocabularies: Class lists whose embeddings go into the bundle.
        announce: Told what is being done, for the progress display.
    """

    config: ModelConfig
    weights: Weights
    weights_dir: Path | None
    refinement: bool
    halves: tuple[Half, ...]
    strict: bool
    runs: tuple[tuple[Backend, Precision], ...]
    photo: Array
    calibration: tuple[Array, ...]
    scenes: tuple[tuple[Array, Array], ...]
    classes: tuple[str, ...]
    vocabularies: tuple[Path, ...]
    announce: Callable[[str], None]


@dataclass(frozen=True)
class Build:
    stages: list[BuiltStage]
    parities: list[StageParity]
    end_to_end: list[EndToEnd]
