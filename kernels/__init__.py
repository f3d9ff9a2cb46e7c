"""The fused steps between the networks: numpy in, numpy out, `out=` reuses buffers, the GIL is released.

`kernels.reference` holds the same functions in plain numpy, `kernels.cuda_api` the same for device pointers.
Arguments are checked here; the compiled code trusts them. Pictures, features and logits are float32 or float16, or
with `bfloat16=True` (preprocess: `dtype="bfloat16"`) uint16 arrays that hold bfloat16 bits (torch:
`tensor.view(torch.uint16).numpy()`); sums are float32.

The best instructions of the processor are used; DINOV3SEG_CPU=avx2 (or another of `build_info()["simd"]`) asks for
others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks, cuda_api

try:
    from . import _kernels
except ImportError as error:
    raise ImportError(f"kernels: no compiled part here ({error}): run `pip install .`") from error

__all__ = ["build_info", "lga_merge", "preprocess", "upsample_argmax"]

Stored = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]
Floats = NDArray[np.float32]
Labels = NDArray[np.uint8] | NDArray[np.uint16]


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
    """Resize, normalise and crop in one pass.

    photo     (H, W, 3) uint8, or (H, W) with color="grey"; any strides: slices and reversed views are read in place.
    size      S, pixels: bilinear as torch does it (align_corners=False), aspect not kept.
    crop      c, pixels, or None for no crops; stride in pixels, (size - crop) % stride == 0.
    antialias as torch's: a photo larger than S is averaged, not sampled; for shrinking by more than 2.
    dtype     of the results, "float32", "float16" or "bfloat16" (uint16 bits): rounded once, at the end.
    returns   image (1, 3, S, S) = (rgb / 255 - mean) / std with the ImageNet statistics that DINOv3,
              AnyUp and SAM share; crops (n, 3, c, c) cut from it, row-major with y outer, or None.
    raises    ValueError naming the argument, what it got and what is expected.
    """
    photo = checks.rgb_view(photo, color)
    size = checks.integer("size", size)
    image_out, crops_out = checks.parts("out", out, ("image", "crops"))
    storage = checks.storage("dtype", dtype)
    element = checks.element_dtype(storage)
    image = checks.output("out[0]", image_out, (1, 3, size, size), element, photo)
    if crop is None:
        if crops_out is not None:
            checks.fail("out[1]", crops_out, "None, because crop is None")
        _kernels.preprocess(photo, 0, 1, bool(antialias), checks.STORAGE[storage], checks.bits(image), None)
        return image, None
    crop = checks.integer("crop", crop, high=size)
    stride = checks.integer("stride", stride)
    count = checks.crops_per_axis(size, crop, stride) ** 2
    crops = checks.output("out[1]", crops_out, (count, 3, crop, crop), element, photo, image)
    results = checks.bits(image), checks.bits(crops)
    _kernels.preprocess(photo, crop, stride, bool(antialias), checks.STORAGE[storage], *results)
    return image, crops


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
    """Local-global aggregation: the mean of the overlapping crops, then the mean of that and the whole image.

    crop_features  (n, g*g, C) patch tokens of k*k crops, row-major with y outer; None: only the whole.
    full_features  (G*G, C), G = g + (k - 1) * stride, of the same dtype; None: only the crops.
    stride         tokens between neighbouring crops (pixels / 16), at most g.
    normalize      divide every token of the result by its length (torch.nn.functional.normalize).
    channels_first the result is (C, G*G).
    returns        (G*G, C) = (sum of covering crops / their count + full) / 2, not one flat mean; dtype as given.
    raises         ValueError naming the argument, what it got and what is expected.
    """
    stride = checks.integer("stride", stride)
    given = "crop_features" if crop_features is not None else "full_features"
    if crop_features is None and full_features is None:
        checks.fail("crop_features", None, "an array, because full_features is None too")
    dtype = checks.stored_dtype(given, full_features if crop_features is None else crop_features, bfloat16)
    if full_features is not None:
        checks.stored("full_features", full_features, dtype, "(G*G, C)")
        grid = checks.square_root("full_features.shape[0]", full_features.shape[0], "G*G tokens")
        layout, shape = (1, grid), full_features.shape
    if crop_features is not None:
        checks.stored("crop_features", crop_features, dtype, "(n, g*g, C)")
        per_axis, crop_grid, grid = checks.token_grid(crop_features.shape[:2], stride)
        layout, shape = (per_axis, crop_grid), (grid * grid, crop_features.shape[2])
        if full_features is not None and full_features.shape != shape:
            checks.fail("full_features", full_features, f"shape {shape} for these crops and stride {stride}")
    merged_shape = shape[::-1] if channels_first else shape
    merged = checks.output("out", out, merged_shape, checks.element_dtype(dtype), crop_features, full_features)
    # The whole image alone is one crop that covers everything.
    crops, full = (full_features, None) if crop_features is None else (crop_features, full_features)
    storage = checks.STORAGE[dtype]
    bits, merged_bits = checks.bits(crops), checks.bits(merged)
    _kernels.lga_merge(
        bits, checks.bits(full), *layout, stride, storage, bool(normalize), bool(channels_first), merged_bits
    )
    return merged


def upsample_argmax(
    logits: Stored,
    size: tuple[int, int],
    scores: bool = False,
    out: Labels | tuple[Labels, Floats] | None = None,
    *,
    bfloat16: bool = False,
) -> Labels | tuple[Labels, Floats]:
    """Bilinear upsampling and argmax over the classes in one go; (K, H, W) never exists.

    logits  (K, h, w), K from 1 to 65535; C order, or the view strips.transpose(1, 0, 2) of C-ordered (h, K, w)
            strips, which is read faster where K is large.
    size    (H, W) pixels of the label map, reached in one step (align_corners=False), up or down.
    returns labels (H, W), uint8 if K <= 255 else uint16: the lower class wins a tie, NaN never wins, and the
            label is 0 where every class is NaN. With scores=True also (H, W) float32, the winning
            interpolated logit, NaN where every class is.
            An infinite logit with weight 0 is NaN, as in torch: -inf never wins, +inf is not to be relied on.
    raises  ValueError naming the argument, what it got and what is expected.
    """
    stored = checks.stored_dtype("logits", logits, bfloat16)
    checks.logits(logits, stored)
    dtype = checks.label_dtype(logits.shape[0])
    shape = checks.height_width("size", size)
    labels_out, scores_out = checks.parts("out", out, ("labels", "scores")) if scores else (out, None)
    labels = checks.output("out[0]" if scores else "out", labels_out, shape, dtype, logits)
    winning = checks.output("out[1]", scores_out, shape, np.float32, logits, labels) if scores else None
    _kernels.upsample_argmax(checks.bits(logits), checks.STORAGE[stored], labels, winning)
    return labels if winning is None else (labels, winning)


def build_info() -> dict[str, Any]:
    """What was compiled in: version, compiler, openmp, simd (best first), cpu (the one in use),
    cuda_architectures ([] means no CUDA).

    Raises:
        ValueError: DINOV3SEG_CPU names instructions that this processor does not have.
    """
    return {**_kernels.build_info(), "cuda_architectures": cuda_api.architectures()}
