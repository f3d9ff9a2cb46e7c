"""The kernels on device memory: pointers as `int`, shapes, and the stream to run on (0 = the default one).

Nothing is allocated or waited for, so that every call can be captured into a CUDA graph. The caller answers
for the pointers: contiguous, of the dtype named, on the current device, alive until the stream is done.
"""

from __future__ import annotations

from typing import Any

from . import _kernels, checks


def available() -> bool:
    """Whether the CUDA kernels were compiled in and a GPU is there to run them."""
    return hasattr(_kernels, "cuda_device_count") and _kernels.cuda_device_count() > 0


def _compiled(name: str) -> Any:
    try:
        return getattr(_kernels, name)
    except AttributeError:
        raise RuntimeError(f"{name}: built without CUDA: reinstall where nvcc is on PATH") from None


def preprocess(
    photo: int,
    image: int,
    crops: int,
    *,
    shape: tuple[int, int],
    size: int = 640,
    crop: int | None = 384,
    stride: int = 256,
    color: str = "rgb",
    pitch: int | None = None,
    stream: int = 0,
) -> None:
    """photo (H, W, 3) uint8 -> image (1, 3, S, S) and crops (n, 3, c, c) float32.

    `shape` = (H, W); rows lie `pitch` bytes apart (None: 3*W); `crops` is 0 where crop is None.
    """
    launch = _compiled("cuda_preprocess")
    height, width = checks.height_width("shape", shape)
    pitch = checks.integer("pitch", 3 * width if pitch is None else pitch, low=3 * width, high=2**40)
    size = checks.integer("size", size)
    bgr = checks.color(color)
    addresses = _pointer("photo", photo), _pointer("image", image)
    if crop is None:
        launch(addresses[0], height, width, pitch, bgr, size, 0, 1, addresses[1], 0, _stream(stream))
        return
    crop = checks.integer("crop", crop, high=size)
    stride = checks.integer("stride", stride)
    checks.crops_per_axis(size, crop, stride)
    crops = _pointer("crops", crops)
    launch(addresses[0], height, width, pitch, bgr, size, crop, stride, addresses[1], crops, _stream(stream))


def lga_merge(
    crop_features: int,
    full_features: int,
    merged: int,
    *,
    shape: tuple[int, int, int],
    stride: int = 16,
    stream: int = 0,
) -> None:
    """crop_features (n, g*g, C) and full_features (G*G, C), or 0 for none, -> merged (G*G, C); all float32.

    `shape` = (n, g*g, C); `stride` in tokens.
    """
    launch = _compiled("cuda_lga_merge")
    count, tokens, channels = _shape(shape, "(n, g*g, C)")
    stride = checks.integer("stride", stride)
    per_axis, crop_grid, _ = checks.token_grid((count, tokens), stride)
    crop_features, merged = _pointer("crop_features", crop_features), _pointer("merged", merged)
    full_features = _pointer("full_features", full_features, optional=True)
    launch(crop_features, full_features, per_axis, crop_grid, stride, channels, merged, _stream(stream))


def upsample_argmax(
    logits: int,
    labels: int,
    scores: int = 0,
    *,
    shape: tuple[int, int, int],
    size: tuple[int, int],
    stream: int = 0,
) -> None:
    """logits (K, h, w) float32 -> labels (H, W), uint8 if K <= 255 else uint16, and scores (H, W) float32.

    `shape` = (K, h, w), `size` = (H, W); `scores` is 0 where they are not wanted.
    """
    launch = _compiled("cuda_upsample_argmax")
    classes, height, width = _shape(shape, "(K, h, w)")
    checks.label_dtype(classes)
    out_height, out_width = checks.height_width("size", size)
    logits, labels = _pointer("logits", logits), _pointer("labels", labels)
    scores = _pointer("scores", scores, optional=True)
    launch(logits, classes, height, width, out_height, out_width, labels, scores, _stream(stream))


def _pointer(name: str, value: Any, optional: bool = False) -> int:
    """A null pointer would poison the whole CUDA context, not only this call."""
    return checks.integer(name, value, low=0 if optional else 1, high=2**64 - 1)


def _stream(value: Any) -> int:
    return checks.integer("stream", value, low=0, high=2**64 - 1)


def _shape(value: Any, layout: str) -> tuple[int, int, int]:
    try:
        first, second, third = value
    except (TypeError, ValueError):
        checks.fail("shape", value, layout)
    return (
        checks.integer("shape[0]", first),
        checks.integer("shape[1]", second),
        checks.integer("shape[2]", third),
    )
