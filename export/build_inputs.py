"""The images that a build looks at: the parity photo, calibration images, scenes with ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.probe import generated_photo
from runtime.video import read_photo

CALIBRATION_SCENES = 3
PARITY_SCENES = 8
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def parity_photo(photo: Path | None, weights: Path | None) -> npt.NDArray[np.uint8]:
    """The photo asked for, or the example beside the weights, or a generated one."""
    from export.shipped import EXAMPLE

    if photo is None and weights is not None and (weights / EXAMPLE).is_file():
        photo = weights / EXAMPLE
    return generated_photo() if photo is None else read_photo(photo)


def calibration_images(folder: Path | None) -> tuple[npt.NDArray[np.uint8], ...]:
    """(H, W, 3) uint8 RGB images of a folder, or three table-top scenes.

    Raises:
        InputError: the folder is missing or holds no image.
    """
    if folder is None:
        from benchmarks.scenes import make_scene

        return tuple(make_scene(seed, split="val").image for seed in range(CALIBRATION_SCENES))
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise InputError(f"--calibration {folder} holds no image; expected a folder with {', '.join(PICTURES)} files")
    return tuple(map(read_photo, files))


def scenes_with_truth(trained: tuple[str, ...]) -> tuple[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], ...]:
    """Table-top scenes for weights that were made for them, none for others."""
    from benchmarks.scene_vocabulary import VOCABULARY
    from benchmarks.scenes import make_scene

    if trained != tuple(VOCABULARY):
        return ()
    scenes = (make_scene(seed, split="val") for seed in range(PARITY_SCENES))
    return tuple((scene.image, scene.labels) for scene in scenes)
