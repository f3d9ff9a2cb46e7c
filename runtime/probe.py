"""The picture and the class names on which engines are compared where nobody names others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

CLASSES = ("wall", "floor", "table", "person", "cup")
MOST_CLASSES = 20


def probe_classes(vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The first names that the model was made for, or some that any model knows."""
    return tuple(vocabulary[:MOST_CLASSES]) or CLASSES


def generated_photo(height: int = 480, width: int = 640) -> npt.NDArray[np.uint8]:
    """A parity image with smooth, textured and sharp regions: gradients, stripes, discs and noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    photo = np.stack([rows / height, columns / width, 1 - rows / height], axis=-1) * 200
    photo[:, : width // 3] += 40 * np.sign(np.sin(columns[:, : width // 3] / 6))[..., None]
    for _ in range(12):
        center, radius = rng.uniform((0, 0), (height, width)), rng.uniform(15, 80)
        disc = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2
        photo[disc] = rng.uniform(0, 255, 3)
    photo += rng.normal(0, 8, photo.shape)
    return photo.clip(0, 255).astype(np.uint8)
