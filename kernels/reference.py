"""The meaning of each kernel in plain numpy: same names and signatures, no checks, no hurry."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8] | NDArray[np.uint16]

MEAN = np.float32([0.485, 0.456, 0.406])
STD = np.float32([0.229, 0.224, 0.225])


def _taps(length: int, new_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """The two source indices of every output index, and the weight of the second (half-pixel centres)."""
    scale = np.float32(length) / np.float32(new_length)
    # float64 and one rounding at the end: torch computes this with one fused multiply-add.
    position = (np.float64(scale) * (np.arange(new_length) + 0.5) - 0.5).astype(np.float32).clip(min=0)
    first = np.minimum(position.astype(np.int64), length - 1)
    weight = np.minimum(position - first.astype(np.float32), np.float32(1))
    return first, np.minimum(first + 1, length - 1), weight


def _bilinear(planes: Floats, size: tuple[int, int]) -> Floats:
    """(..., h, w) -> (..., H, W) as torch: align_corners=False, antialias=False. Vertical first."""
    top, bottom, y = _taps(planes.shape[-2], size[0])
    left, right, x = _taps(planes.shape[-1], size[1])
    y = y[:, None]
    rows = (1 - y) * planes[..., top, :] + y * planes[..., bottom, :]
    return (1 - x) * rows[..., left] + x * rows[..., right]


def preprocess(
    photo: NDArray[np.uint8],
    size: int = 640,
    crop: int | None = 384,
    stride: int = 256,
    color: str = "rgb",
    out: tuple[Floats, Floats | None] | None = None,
) -> tuple[Floats, Floats | None]:
    rgb = photo if color == "rgb" else photo[..., ::-1]
    planes = rgb.transpose(2, 0, 1).astype(np.float32)
    resized = _bilinear(planes, (size, size)) / np.float32(255)
    image = ((resized - MEAN[:, None, None]) / STD[:, None, None])[None]
    crops = None
    if crop is not None:
        offsets = range(0, size - crop + 1, stride)
        crops = np.concatenate([image[:, :, y : y + crop, x : x + crop] for y in offsets for x in offsets])
    image_out, crops_out = out or (None, None)
    return _deliver(image, image_out), None if crops is None else _deliver(crops, crops_out)


def lga_merge(
    crop_features: Floats | None,
    full_features: Floats | None = None,
    stride: int = 16,
    out: Floats | None = None,
) -> Floats:
    if crop_features is None:
        return _deliver(full_features.copy(), out)
    count, tokens, channels = crop_features.shape
    per_axis, crop_grid = math.isqrt(count), math.isqrt(tokens)
    grid = crop_grid + (per_axis - 1) * stride
    total = np.zeros((grid, grid, channels), np.float32)
    covered = np.zeros((grid, grid, 1), np.float32)
    for index, features in enumerate(crop_features.reshape(count, crop_grid, crop_grid, channels)):
        y, x = index // per_axis * stride, index % per_axis * stride
        total[y : y + crop_grid, x : x + crop_grid] += features
        covered[y : y + crop_grid, x : x + crop_grid] += 1
    local = (total / covered).reshape(grid * grid, channels)
    return _deliver(local if full_features is None else (local + full_features) / 2, out)


def upsample_argmax(
    logits: Floats,
    size: tuple[int, int],
    scores: bool = False,
    out: Labels | tuple[Labels, Floats] | None = None,
) -> Labels | tuple[Labels, Floats]:
    labels = np.zeros(size, np.uint8 if len(logits) <= 255 else np.uint16)
    best = np.full(size, np.nan, np.float32)
    for k, plane in enumerate(logits):
        value = _bilinear(plane, size)
        wins = ~(value <= best) & ~np.isnan(value)
        labels[wins] = k
        best[wins] = value[wins]
    labels_out, scores_out = (out or (None, None)) if scores else (out, None)
    labels = _deliver(labels, labels_out)
    return (labels, _deliver(best, scores_out)) if scores else labels


def _deliver(result: NDArray, out: NDArray | None) -> NDArray:
    if out is None:
        return result
    np.copyto(out, result)
    return out
