"""The fused steps between the networks: numpy in, numpy out, `out=` reuses buffers, the GIL is released.

`kernels.reference` holds the same functions in plain numpy, `kernels.cuda_api` the same for device pointers.
Arguments are checked here; the compiled code trusts them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks

try:
    from . import _kernels
except ImportError as error:
    raise ImportError(f"kernels: no compiled part here ({error}): run `pip install .`") from error

__all__ = ["build_info", "lga_merge", "preprocess", "upsample_argmax"]

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8] | NDArray[np.uint16]


def preprocess(
    photo: NDArray[np.uint8],
    size: int = 640,
    crop: int | None = 384,
    stride: int = 256,
    color: str = "rgb",
    out: tuple[Floats, Floats | None] | None = None,
) -> tuple[Floats, Floats | None]:
    """Resize, normalise and crop in one pass.

    photo   (H, W, 3) uint8 with any strides: slices and reversed views are read in place.
    size    S, pixels: bilinear as torch does it (align_corners=False, antialias=False), aspect not kept.
    crop    c, pixels, or None for no crops; stride in pixels, (size - crop) % stride == 0.
    returns image (1, 3, S, S) float32 = (rgb / 255 - mean) / std with the ImageNet statistics that DINOv3,
            AnyUp and SAM share; crops (n, 3, c, c) float32 cut from it, row-major with y outer, or None.
    """
    checks.photo(photo)
    size = checks.integer("size", size)
    if checks.color(color):
        photo = photo[..., ::-1]
    image_out, crops_out = checks.parts("out", out, ("image", "crops"))
    image = checks.output("out[0]", image_out, (1, 3, size, size), np.float32, photo)
    if crop is None:
        if crops_out is not None:
            checks.fail("out[1]", crops_out, "None, because crop is None")
        _kernels.preprocess(photo, 0, 1, image, None)
        return image, None
    crop = checks.integer("crop", crop, high=size)
    stride = checks.integer("stride", stride)
    count = checks.crops_per_axis(size, crop, stride) ** 2
    crops = checks.output("out[1]", crops_out, (count, 3, crop, crop), np.float32, photo, image)
    _kernels.preprocess(photo, crop, stride, image, crops)
    return image, crops


def lga_merge(
    crop_features: Floats | None,
    full_features: Floats | None = None,
    stride: int = 16,
    out: Floats | None = None,
) -> Floats:
    """Local-global aggregation: the mean of the overlapping crops, then the mean of that and the whole image.

    crop_features (n, g*g, C) float32 patch tokens of k*k crops, row-major with y outer; None: only the whole.
    full_features (G*G, C) float32, G = g + (k - 1) * stride; None: only the crops.
    stride        tokens between neighbouring crops (pixels / 16), at most g.
    returns       (G*G, C) float32 = (sum of covering crops / their count + full) / 2, not one flat mean.
    """
    stride = checks.integer("stride", stride)
    if crop_features is None and full_features is None:
        checks.fail("crop_features", None, "an array, because full_features is None too")
    if full_features is not None:
        checks.floats("full_features", full_features, "(G*G, C)")
        checks.square_root("full_features.shape[0]", full_features.shape[0], "G*G tokens")
    if crop_features is None:
        merged = checks.output("out", out, full_features.shape, np.float32, full_features)
        np.copyto(merged, full_features)
        return merged
    checks.floats("crop_features", crop_features, "(n, g*g, C)")
    per_axis, crop_grid, grid = checks.token_grid(crop_features.shape[:2], stride)
    shape = (grid * grid, crop_features.shape[2])
    if full_features is not None and full_features.shape != shape:
        checks.fail("full_features", full_features, f"shape {shape} for these crops and stride {stride}")
    merged = checks.output("out", out, shape, np.float32, crop_features, full_features)
    _kernels.lga_merge(crop_features, full_features, per_axis, crop_grid, stride, merged)
    return merged


def upsample_argmax(
    logits: Floats,
    size: tuple[int, int],
    scores: bool = False,
    out: Labels | tuple[Labels, Floats] | None = None,
) -> Labels | tuple[Labels, Floats]:
    """Bilinear upsampling and argmax over the classes in one go; (K, H, W) never exists.

    logits  (K, h, w) float32, K from 1 to 65535.
    size    (H, W) pixels of the label map, reached in one step (align_corners=False), up or down.
    returns labels (H, W), uint8 if K <= 255 else uint16: the lower class wins a tie, NaN never wins, and the
            label is 0 where every class is NaN. With scores=True also (H, W) float32, the winning
            interpolated logit, NaN where every class is.
            An infinite logit with weight 0 is NaN, as in torch: -inf never wins, +inf is not to be relied on.
    """
    checks.floats("logits", logits, "(K, h, w)")
    dtype = checks.label_dtype(logits.shape[0])
    shape = checks.height_width("size", size)
    labels_out, scores_out = checks.parts("out", out, ("labels", "scores")) if scores else (out, None)
    labels = checks.output("out[0]" if scores else "out", labels_out, shape, dtype, logits)
    if not scores:
        _kernels.upsample_argmax(logits, labels, None)
        return labels
    winning = checks.output("out[1]", scores_out, shape, np.float32, logits, labels)
    _kernels.upsample_argmax(logits, labels, winning)
    return labels, winning


def build_info() -> dict[str, Any]:
    """What was compiled in: version, compiler, openmp, simd, cuda_architectures ([] means no CUDA)."""
    return dict(_kernels.build_info())
