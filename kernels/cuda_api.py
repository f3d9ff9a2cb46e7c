"""The kernels on device memory: pointers as `int`, shapes, and the stream to run on (0 = the default one).

Nothing is allocated or waited for, so that every call can be captured into a CUDA graph. The caller answers
for the pointers: contiguous, of the dtype named, on the current device, alive until the stream is done.
CUDA loads a kernel when it is first used: make each call once before capturing it.
They need be aligned to their elements only; 16 bytes, and shapes that keep rows so, make the kernels faster.
"""

from __future__ import annotations

from typing import Any

from . import checks

try:
    from . import _kernels_cuda
except ImportError:
    _kernels_cuda = None

DTYPES = {"float32": (0, 4), "float16": (1, 2), "bfloat16": (2, 2)}  # the number the kernels know it by, bytes
COLORS = {"rgb": (3, 0, 1), "bgr": (3, 2, -1), "rgba": (4, 0, 1), "bgra": (4, 2, -1), "grey": (1, 0, 0)}
# bytes a pixel, where red is in it, and how far it is to green and on to blue

Range = tuple[str, int, int]  # name, first address, address after the last


def architectures() -> list[str]:
    """The GPU architectures compiled for; [] is a build without CUDA."""
    return [] if _kernels_cuda is None else list(_kernels_cuda.architectures())


def available() -> bool:
    """Whether the CUDA kernels were compiled in and a GPU is there to run them."""
    return _kernels_cuda is not None and _kernels_cuda.device_count() > 0


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
    antialias: bool = False,
    pitch: int | None = None,
    dtype: str = "float32",
    stream: int = 0,
) -> None:
    """Resize, normalise, crop and change the layout in one launch.

    photo (H, W, 3) uint8, or 4 bytes a pixel for "rgba" and "bgra", 1 for "grey" -> image (1, 3, S, S) and
    crops (n, 3, c, c) of `dtype`. `shape` = (H, W); rows lie `pitch` bytes apart (None: no padding);
    `crops` is 0 where crop is None. antialias: as `kernels.preprocess` does it, for shrinking by more than 2.
    """
    launch = _compiled("preprocess")
    height, width = checks.height_width("shape", shape)
    if not isinstance(color, str) or color not in COLORS:
        checks.fail("color", color, _one_of(COLORS))
    pixel, red, step = COLORS[color]
    width = checks.integer("shape[1]", width, high=(2**31 - 1) // pixel)
    row = pixel * width
    pitch = checks.integer("pitch", row if pitch is None else pitch, low=row, high=2**40)
    size = checks.integer("size", size)
    storage, itemsize = _dtype(dtype)
    inputs = [_range("photo", photo, pitch * (height - 1) + row)]
    outputs = [_range("image", image, 3 * size * size * itemsize, itemsize)]
    if crop is None:
        crop, stride, crops = 0, 1, 0
    else:
        crop = checks.integer("crop", crop, high=size)
        stride = checks.integer("stride", stride)
        count = checks.crops_per_axis(size, crop, stride) ** 2
        outputs.append(_range("crops", crops, count * 3 * crop * crop * itemsize, itemsize))
    _apart(inputs, outputs)
    source = photo + red, height, width, pitch, pixel, step
    geometry = size, crop, stride, bool(antialias)
    launch(*source, *geometry, storage, image, crops, _stream(stream))


def lga_merge(
    crop_features: int,
    full_features: int,
    merged: int,
    *,
    shape: tuple[int, int, int],
    stride: int = 16,
    dtype: str = "float32",
    normalize: bool = False,
    channels_first: bool = False,
    stream: int = 0,
) -> None:
    """crop_features (n, g*g, C) and full_features (G*G, C), or 0 for none, -> merged (G*G, C); all of `dtype`.

    `shape` = (n, g*g, C); `stride` in tokens. normalize: every merged token is divided by its length, as
    torch.nn.functional.normalize does. channels_first: merged is (C, G, G). The whole image alone takes either
    too: pass it as one crop.
    """
    launch = _compiled("lga_merge")
    count, tokens, channels = _shape(shape, "(n, g*g, C)")
    stride = checks.integer("stride", stride)
    per_axis, crop_grid, grid = checks.token_grid((count, tokens), stride)
    if grid * grid >= 2**31:
        checks.fail("shape", shape, "fewer than 2^31 merged tokens")
    storage, itemsize = _dtype(dtype)
    inputs = [_range("crop_features", crop_features, count * tokens * channels * itemsize, itemsize)]
    whole = grid * grid * channels * itemsize
    if full_features != 0:
        inputs.append(_range("full_features", full_features, whole, itemsize))
    _apart(inputs, [_range("merged", merged, whole, itemsize)])
    layout = per_axis, crop_grid, stride, channels, storage, bool(normalize), bool(channels_first)
    launch(crop_features, full_features, *layout, merged, _stream(stream))


def upsample_argmax(
    logits: int,
    labels: int,
    scores: int = 0,
    *,
    shape: tuple[int, int, int],
    size: tuple[int, int],
    dtype: str = "float32",
    strides: tuple[int, int] | None = None,
    prune: bool = True,
    stream: int = 0,
) -> None:
    """logits (K, h, w) of `dtype` -> labels (H, W), uint8 if K <= 255 else uint16, and scores (H, W) float32.

    `shape` = (K, h, w), `size` = (H, W); `scores` is 0 where they are not wanted. `strides` = elements from class
    to class and from row to row (None: h*w and w; (w, K*w) is the strip-major (h, K, w)). `prune` False computes
    every class at every pixel: the result is the same.
    """
    launch = _compiled("upsample_argmax")
    classes, height, width = _shape(shape, "(K, h, w)")
    label_bytes = 1 if checks.label_dtype(classes)(0).nbytes == 1 else 2
    out_height, out_width = checks.height_width("size", size)
    storage, itemsize = _dtype(dtype)
    class_stride, row_stride = _strides(strides, classes, height, width)
    extent = (classes - 1) * class_stride + (height - 1) * row_stride + width
    inputs = [_range("logits", logits, extent * itemsize, itemsize)]
    outputs = [_range("labels", labels, out_height * out_width * label_bytes, label_bytes)]
    if scores != 0:
        outputs.append(_range("scores", scores, out_height * out_width * 4, 4))
    _apart(inputs, outputs)
    source = classes, height, width, class_stride, row_stride, storage
    out = out_height, out_width, label_bytes, labels, scores
    launch(logits, *source, *out, bool(prune), _stream(stream))


def _compiled(name: str) -> Any:
    if _kernels_cuda is None:
        raise RuntimeError(f"{name}: built without CUDA: reinstall where nvcc is on PATH")
    return getattr(_kernels_cuda, name)


def _range(name: str, pointer: Any, length: int, alignment: int = 1) -> Range:
    """A null or misaligned pointer would poison the whole CUDA context, not only this call."""
    pointer = checks.integer(name, pointer, low=1, high=2**64 - 1)
    if pointer % alignment:
        checks.fail(name, pointer, f"an address that is a multiple of {alignment}, the size of an element")
    return name, pointer, pointer + length


def _apart(inputs: list[Range], outputs: list[Range]) -> None:
    for i, (name, begin, end) in enumerate(outputs):
        for other, other_begin, other_end in inputs + outputs[:i]:
            if begin < other_end and other_begin < end:
                raise ValueError(f"{name}: got memory that {other} uses too, expected memory of its own")


def _dtype(value: Any) -> tuple[int, int]:
    if not isinstance(value, str) or value not in DTYPES:
        checks.fail("dtype", value, _one_of(DTYPES))
    return DTYPES[value]


def _stream(value: Any) -> int:
    return checks.integer("stream", value, low=0, high=2**64 - 1)


def _strides(value: Any, classes: int, height: int, width: int) -> tuple[int, int]:
    """Each at least a row, and the outer of the two at least all that the inner one spans: nothing overlaps."""
    if value is None:
        return height * width, width
    try:
        by_class, by_row = value
    except (TypeError, ValueError):
        checks.fail("strides", value, "(class stride, row stride) in elements")
    high = 2**40
    by_class = checks.integer("strides[0]", by_class, width, high)
    by_row = checks.integer("strides[1]", by_row, width, high)
    plane, strip = (height - 1) * by_row + width, (classes - 1) * by_class + width
    if by_class < plane and by_row < strip and classes > 1 and height > 1:
        checks.fail("strides", (by_class, by_row), f"[0] of {plane} or [1] of {strip} at least: classes overlap")
    return by_class, by_row


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


def _one_of(names: dict[str, Any]) -> str:
    return ", ".join(f'"{name}"' for name in names)
