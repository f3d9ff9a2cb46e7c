"""Whatever callers hold as an image -> (H, W, 3) uint8 arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError

Pixels = npt.NDArray[np.uint8]
DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


def as_pixels(image: Any) -> Pixels:
    """A numpy array, PIL image, or anything with DLPack (a torch or CuPy tensor) as (H, W, 3) uint8.

    Arrays are not copied, whatever their strides. PIL images become RGB.

    Raises:
        InputError: another type, dtype, rank or channel count, an empty image, or device memory.
    """
    if hasattr(image, "convert") and hasattr(image, "getbands"):  # PIL, without importing it
        try:
            image = np.asarray(image.convert("RGB"))
        except OSError as error:  # PIL reads lazily: a truncated file shows only now
            raise InputError(f"PIL image cannot be read ({error}); is it a whole picture file?") from None
    elif not isinstance(image, np.ndarray):
        image = _from_dlpack(image)
    if image.dtype != np.uint8:
        hint = "; scale to 0..255 and convert with .astype(numpy.uint8)" if image.dtype.kind == "f" else ""
        raise InputError(f"image has dtype {image.dtype}; expected uint8{hint}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            f"image has shape {image.shape}; expected (H, W, 3) with colour channels last"
            + ("; convert greyscale or alpha to RGB first" if image.ndim in (2, 3) else "")
        )
    if 0 in image.shape:
        raise InputError(f"image has shape {image.shape}; expected at least one pixel")
    pixels: Pixels = image
    return pixels


def in_gpu_memory(image: Any) -> bool:
    """Whether an array lies on a GPU: of torch, CuPy, Numba, PyCUDA, or anything with DLPack."""
    if hasattr(image, "__cuda_array_interface__"):  # which torch does not let CPU tensors have
        return True
    return hasattr(image, "__dlpack_device__") and int(image.__dlpack_device__()[0]) in DLPACK_CUDA


def _from_dlpack(image: Any) -> npt.NDArray[Any]:
    if not hasattr(image, "__dlpack__"):
        raise InputError(f"image is a {type(image).__name__}; expected a numpy array, a PIL image or a DLPack tensor")
    try:
        return np.from_dlpack(image)
    except (BufferError, TypeError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"image tensor cannot be shared with the CPU ({reason}); copy it there first, e.g. tensor.cpu()"
        ) from None
