"""The meaning of each kernel in plain numpy: same names and signatures, no checks, no hurry."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Stored = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]
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


def _triangles(length: int, new_length: int) -> Floats:
    """(new_length, length) weights of torch's antialias=True where the input is the larger."""
    scale = length / new_length
    centre = scale * (np.arange(new_length) + 0.5)
    inputs = np.arange(length)
    begin, end = (centre - scale + 0.5).astype(int)[:, None], (centre + scale + 0.5).astype(int)[:, None]
    weights = (1 - abs(inputs + 0.5 - centre[:, None]) / scale).clip(min=0) * ((inputs >= begin) & (inputs < end))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _antialiased(planes: Floats, size: tuple[int, int]) -> Floats:
    """Axis by axis: the one that shrinks is averaged, the other is sampled."""
    height, width = planes.shape[-2:]
    if height > size[0]:
        planes = np.einsum("yj,cjx->cyx", _triangles(height, size[0]), planes)
    if width > size[1]:
        planes = np.einsum("xj,cyj->cyx", _triangles(width, size[1]), planes)
    return _bilinear(planes, size)


def preprocess(
    photo: NDArray[np.uint8],
    size: int = 640,
    crop: int | None = 384,
    stride: int = 256,
    color: str = "rgb",
    out: tuple[Stored, Stored | None] | None = None,
    *,
    antialias: bool = False,
    dtype: str = "float32",
) -> tuple[Stored, Stored | None]:
    rgb = {"rgb": photo, "bgr": photo[..., ::-1], "grey": photo[..., None].repeat(3, axis=-1)}[color]
    planes = rgb.transpose(2, 0, 1).astype(np.float32)
    resized = (_antialiased if antialias else _bilinear)(planes, (size, size)) / np.float32(255)
    image = _stored(((resized - MEAN[:, None, None]) / STD[:, None, None])[None], dtype)
    crops = None
    if crop is not None:
        offsets = range(0, size - crop + 1, stride)
        crops = np.concatenate([image[:, :, y : y + crop, x : x + crop] for y in offsets for x in offsets])
    image_out, crops_out = out or (None, None)
    return _deliver(image, image_out), None if crops is None else _deliver(crops, crops_out)


def lga_merge(
    crop_features: Stored | None,
    full_features: Stored | None = None,
    stride: int = 16,
    out: Stored | None = None,
    *,
    normalize: bool = False,
    channels_first: bool = False,
    bfloat16: bool = False,
) -> Stored:
    stored = full_features if crop_features is None else crop_features
    crops, full = _as_floats(crop_features, bfloat16), _as_floats(full_features, bfloat16)
    merged = _merged(crops, full, stride)
    if normalize:
        merged = merged / np.linalg.norm(merged, axis=1, keepdims=True).clip(min=1e-12)
    merged = np.ascontiguousarray(merged.T) if channels_first else merged
    return _deliver(_stored(merged, "bfloat16" if bfloat16 else stored.dtype.name), out)


def _merged(crop_features: Floats | None, full_features: Floats | None, stride: int) -> Floats:
    if crop_features is None:
        return full_features.copy()
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
    return local if full_features is None else (local + full_features) / 2


def upsample_argmax(
    logits: Stored,
    size: tuple[int, int],
    scores: bool = False,
    out: Labels | tuple[Labels, Floats] | None = None,
    *,
    bfloat16: bool = False,
) -> Labels | tuple[Labels, Floats]:
    labels = np.zeros(size, np.uint8 if len(logits) <= 255 else np.uint16)
    best = np.full(size, np.nan, np.float32)
    for k, plane in enumerate(_as_floats(logits, bfloat16)):
        value = _bilinear(plane, size)
        wins = ~(value <= best) & ~np.isnan(value)
        labels[wins] = k
        best[wins] = value[wins]
    labels_out, scores_out = (out or (None, None)) if scores else (out, None)
    labels = _deliver(labels, labels_out)
    return (labels, _deliver(best, scores_out)) if scores else labels


def _as_floats(stored: Stored | None, bfloat16: bool) -> Floats | None:
    if bfloat16 and stored is not None:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return None if stored is None else stored.astype(np.float32)


def _stored(values: Floats, dtype: str) -> Stored:
    return _bfloat_bits(values) if dtype == "bfloat16" else values.astype(dtype)


def _bfloat_bits(values: Floats) -> NDArray[np.uint16]:
    """To nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _deliver(result: NDArray, out: NDArray | None) -> NDArray:
    if out is None:
        return result
    np.copyto(out, result)
    return out
