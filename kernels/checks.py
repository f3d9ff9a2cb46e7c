"""What a caller may get wrong, as one line each: argument, what was given, what is expected."""

from __future__ import annotations

import math
import operator
from typing import Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

MOST_BYTES = 2**62  # of one array: NumPy has a ValueError of its own beyond, which names no argument
MAX_CLASSES = 65535  # uint16 labels, with 65535 kept for "no class"


def fail(name: str, given: Any, expected: str) -> NoReturn:
    raise ValueError(f"{name}: got {_describe(given)}, expected {expected}")


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    text = repr(value) if value is None or isinstance(value, (int, float, str, tuple)) else ""
    return text if 0 < len(text) <= 60 else type(value).__name__


def integer(name: str, value: Any, low: int = 1, high: int = 2**31 - 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        fail(name, value, "an integer")
    if not low <= number <= high:
        fail(name, number, f"an integer from {low} to {high}")
    return number


def height_width(name: str, value: Any) -> tuple[int, int]:
    try:
        height, width = value
    except (TypeError, ValueError):
        fail(name, value, "(height, width)")
    return integer(f"{name}[0]", height), integer(f"{name}[1]", width)


def photo(value: Any) -> None:
    expected = "uint8 array of shape (H, W, 3)"
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        fail("photo", value, expected)
    if value.size == 0:
        fail("photo", value, f"{expected} with H and W above 0")


def color(value: Any, also: str = "") -> bool:
    """Whether the channels are stored blue first. `also`: what else the caller takes, for the message."""
    if not isinstance(value, str) or value not in ("rgb", "bgr"):
        fail("color", value, '"rgb" or "bgr"' + (f" or {also}" if also else ""))
    return value == "bgr"


def crops_per_axis(size: int, crop: int, stride: int) -> int:
    if (size - crop) % stride:
        fail("stride", stride, f"a divisor of size - crop = {size - crop}")
    return (size - crop) // stride + 1


def rgb_view(value: Any, order: Any) -> NDArray[np.uint8]:
    """The photo as (H, W, 3), red first, nothing copied."""
    if order == "grey":
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 2 or value.size == 0:
            fail("photo", value, 'uint8 array of shape (H, W) with H and W above 0, because color is "grey"')
        return np.broadcast_to(value[..., None], (*value.shape, 3))
    photo(value)
    return value[..., ::-1] if color(order, also='"grey"') else value


STORAGE = {"float32": 0, "float16": 1, "bfloat16": 2}  # as in include/storage.hpp


def storage(name: str, value: Any) -> str:
    """Of a result, one of `STORAGE`."""
    if not isinstance(value, str) or value not in STORAGE:
        fail(name, value, ", ".join(f'"{dtype}"' for dtype in STORAGE))
    return value


def stored_dtype(name: str, value: Any, bfloat16: bool) -> str:
    """Of features or logits, one of `STORAGE`."""
    if bfloat16:
        return "bfloat16"
    if isinstance(value, np.ndarray) and value.dtype == np.float16:
        return "float16"
    return "float32"


def stored(name: str, value: Any, dtype: str, layout: str) -> None:
    """`layout` names the axes, e.g. "(K, h, w)". Never copied: these arrays are large."""
    _stored_array(name, value, dtype, layout)
    if not value.flags.c_contiguous:
        raise ValueError(f"{name}: got a non-contiguous array, expected C order: pass np.ascontiguousarray({name})")


def logits(value: Any, dtype: str) -> None:
    _stored_array("logits", value, dtype, "(K, h, w)")
    in_order = value.flags.c_contiguous or value.transpose(1, 0, 2).flags.c_contiguous
    if not in_order:
        raise ValueError(
            "logits: got a non-contiguous array, expected C order or the view strips.transpose(1, 0, 2) of C-ordered "
            "(h, K, w) strips: pass np.ascontiguousarray(logits)"
        )


def _stored_array(name: str, value: Any, dtype: str, layout: str) -> None:
    held = "uint16 (bfloat16 bits)" if dtype == "bfloat16" else dtype
    expected = f"{held} array of shape {layout}"
    wanted = element_dtype(dtype)
    if not isinstance(value, np.ndarray) or value.dtype != wanted or value.ndim != layout.count(",") + 1:
        fail(name, value, expected)
    if value.size == 0:
        fail(name, value, f"{expected} with no axis of 0")
    if not value.flags.aligned:
        raise ValueError(f"{name}: got a misaligned array, expected one at a multiple of {wanted.itemsize} bytes")


def element_dtype(dtype: str) -> np.dtype[Any]:
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def bits(array: NDArray[Any] | None) -> NDArray[Any] | None:
    """What the compiled part takes: float16 as uint16."""
    return array.view(np.uint16) if array is not None and array.dtype == np.float16 else array


def square_root(name: str, number: int, meaning: str) -> int:
    root = math.isqrt(number)
    if root * root != number:
        fail(name, number, f"a square number ({meaning})")
    return root


def token_grid(crops: tuple[int, int], stride: int) -> tuple[int, int, int]:
    """(n, g*g) -> crops per axis, g, and the side G of the merged grid."""
    per_axis = square_root("crop_features.shape[0]", crops[0], "n = k*k crops")
    crop_grid = square_root("crop_features.shape[1]", crops[1], "g*g tokens a crop")
    if per_axis > 1 and stride > crop_grid:
        fail("stride", stride, f"at most g = {crop_grid}: larger ones leave tokens that no crop covers")
    return per_axis, crop_grid, crop_grid + (per_axis - 1) * stride


def label_dtype(classes: int) -> type[np.uint8] | type[np.uint16]:
    if not 1 <= classes <= MAX_CLASSES:
        fail("logits", classes, f"1 to {MAX_CLASSES} classes (K)")
    return np.uint8 if classes <= 255 else np.uint16


def parts(name: str, value: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """`out=` of a function that returns several arrays."""
    if value is None:
        return (None,) * len(names)
    if not isinstance(value, (tuple, list)) or len(value) != len(names):
        fail(name, value, f"a tuple ({', '.join(names)})")
    return tuple(value)


def output(
    name: str, buffer: Any, shape: tuple[int, ...], dtype: DTypeLike, *not_touching: NDArray[Any] | None
) -> NDArray[Any]:
    """`buffer` if it can hold the result, or a new array where it is None."""
    wanted = np.dtype(dtype)
    if buffer is None:
        if math.prod(shape) * wanted.itemsize > MOST_BYTES:
            fail(name, shape, "a result that addresses can reach")
        return _on_a_cache_line(shape, wanted)
    if not isinstance(buffer, np.ndarray) or buffer.dtype != wanted or buffer.shape != shape:
        fail(name, buffer, f"{wanted} array of shape {shape}")
    if not buffer.flags.c_contiguous:
        raise ValueError(f"{name}: got a non-contiguous array, expected C order")
    if not buffer.flags.aligned:
        raise ValueError(f"{name}: got a misaligned array, expected one at a multiple of {wanted.itemsize} bytes")
    if not buffer.flags.writeable:
        raise ValueError(f"{name}: got a read-only array, expected a writable one")
    if any(np.may_share_memory(buffer, other) for other in not_touching if other is not None):
        raise ValueError(f"{name}: got memory that another argument uses too, expected memory of its own")
    return buffer


def _on_a_cache_line(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """np.empty that begins at a multiple of 64 bytes, where whole rows can be written past the caches."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + size].view(dtype).reshape(shape)
