"""Rotary position tables of the backbone, computed once at load for each image size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def rope_tables(periods: Sequence[float], grid: tuple[int, int], prefix_tokens: int) -> tuple[FloatArray, FloatArray]:
    """Sine and cosine tables for a sequence of `prefix_tokens` unrotated tokens and h*w patch tokens.

    Coordinates are the patch centres in (-1, 1), each axis on its own; angles are 2*pi*coordinate/period,
    rows first. Prefix tokens get sine 0 and cosine 1, so that the graph rotates the whole sequence without
    slicing. Computed in float64: the tables are then right to the last float32 digit.

    Args:
        periods: The checkpoint's `rope_embed.periods`, head_dim/4 values. Never recomputed: released
            checkpoints hold values rounded to bfloat16.
        grid: Patch rows and columns (h, w).
        prefix_tokens: Class and storage tokens in front of the patches.

    Returns:
        sin, cos: float32, each (prefix_tokens + h*w, head_dim).

    Source: DINOv3 `RopePositionEmbedding`, MODEL_SPEC section (a).
    """
    rows, columns = ((np.arange(n, dtype=np.float64) + 0.5) / n * 2 - 1 for n in grid)
    coordinates = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    angles = (2 * np.pi * coordinates / np.asarray(periods, dtype=np.float64)).reshape(len(coordinates), -1)
    angles = np.pad(np.tile(angles, 2), ((prefix_tokens, 0), (0, 0)))
    return np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)
