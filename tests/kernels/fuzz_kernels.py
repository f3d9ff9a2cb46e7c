"""Random shapes, strides, dtypes and class counts against the reference. `make sanitize` runs it under ASan and UBSan.

python tests/kernels/fuzz_kernels.py --count 10000 --seed 0
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

import kernels
from kernels import reference

Random = np.random.Generator


def poisoned(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """A result buffer of its own, so that a sanitizer sees one element too many; full of what no kernel writes."""
    buffer = np.empty(shape, dtype)
    buffer.view(np.uint8).fill(0xA5)
    return buffer


def some(rng: Random, most: int) -> int:
    """1 to `most`, the small ones more often."""
    return int(np.ceil(most ** rng.random()))


def stored(rng: Random, values: np.ndarray) -> tuple[np.ndarray, bool]:
    """As float32, float16 or bfloat16 bits; the second says whether it is the last."""
    kind = rng.integers(3)
    if kind == 2:
        return reference._bfloat_bits(values), True
    return values.astype(np.float16) if kind else values, False


def features(rng: Random, *shape: int) -> np.ndarray:
    values = rng.standard_normal(shape, dtype=np.float32) * np.float32(10.0 ** rng.integers(-4, 4))
    if rng.random() < 0.1:
        values[rng.random(shape) < 0.05] = rng.choice([np.nan, np.inf, 0.0])
    return values


def lga_merge(rng: Random) -> None:
    large = rng.random() < 0.02  # several blocks of channels
    per_axis, crop_grid, channels = some(rng, 4), some(rng, 3 if large else 7), some(rng, 5000 if large else 90)
    stride = int(rng.integers(1, crop_grid + 1))
    grid = crop_grid + (per_axis - 1) * stride
    values = features(rng, per_axis**2 * crop_grid**2 + grid**2, channels)
    everything, bfloat16 = stored(rng, values)
    crops = everything[: -(grid**2)].reshape(per_axis**2, crop_grid**2, channels)
    full = everything[-(grid**2) :] if rng.random() < 0.7 else None
    if full is not None and rng.random() < 0.1:
        crops = None
    options = {"normalize": rng.random() < 0.3, "channels_first": rng.random() < 0.3, "bfloat16": bfloat16}
    expected = reference.lga_merge(crops, full, stride, **options)
    given = kernels.lga_merge(crops, full, stride, out=poisoned(expected.shape, expected.dtype), **options)
    if options["normalize"]:  # the reference adds the squares in another order
        ours, theirs = (reference._as_floats(array, bfloat16) for array in (given, expected))
        np.testing.assert_allclose(ours, theirs, rtol=2e-2 if bfloat16 else 2e-3, atol=1e-6)
    elif bfloat16:
        np.testing.assert_array_equal(*(reference._as_floats(array, True) for array in (given, expected)))
    else:
        np.testing.assert_array_equal(given, expected)


def logits(rng: Random, shape: tuple[int, int, int]) -> np.ndarray:
    classes, height, width = shape
    style = rng.integers(5)
    if style == 0:  # smooth
        y, x = np.mgrid[:height, :width].astype(np.float32) / 9
        phase = rng.standard_normal((4, classes, 1, 1), dtype=np.float32) * 2
        values = np.sin(y * phase[0] + phase[1]) + np.cos(x * phase[2] + phase[3])
    elif style == 1:  # exact ties
        values = np.round(rng.standard_normal(shape, dtype=np.float32) * 2)
    elif style == 2:
        values = np.full(shape, rng.standard_normal(), np.float32)
    else:
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(10.0 ** rng.integers(-42, 37))
    if rng.random() < 0.3:
        values[rng.random(shape) < rng.choice([0.01, 0.5, 1.0])] = rng.choice([np.nan, np.inf, -np.inf, -100.0])
    return values.astype(np.float32)


def upsample_argmax(rng: Random) -> None:
    large = rng.random() < 0.02
    shape = (some(rng, 4096 if large else 60), some(rng, 5 if large else 40), some(rng, 5 if large else 60))
    size = some(rng, 20 if large else 100), some(rng, 20 if large else 100)
    values, bfloat16 = stored(rng, logits(rng, shape))
    if rng.random() < 0.3:  # strip-major
        values = np.ascontiguousarray(values.transpose(1, 0, 2)).transpose(1, 0, 2)
    labels, scores = reference.upsample_argmax(values, size, scores=True, bfloat16=bfloat16)
    out = poisoned(size, labels.dtype), poisoned(size, np.float32)
    kernels.upsample_argmax(values, size, scores=True, out=out, bfloat16=bfloat16)
    np.testing.assert_array_equal(out[0], labels)
    np.testing.assert_array_equal(out[1], scores)
    only = kernels.upsample_argmax(values, size, out=poisoned(size, labels.dtype), bfloat16=bfloat16)
    np.testing.assert_array_equal(only, labels)


def photo(rng: Random) -> tuple[np.ndarray, str]:
    height, width = some(rng, 90), some(rng, 90)
    steps = [slice(None, None, int(step)) for step in rng.choice([-3, -2, -1, 1, 1, 1, 2], 2)]
    if rng.random() < 0.2:
        return rng.integers(0, 256, (height, width), dtype=np.uint8)[tuple(steps)], "grey"
    pixels = rng.integers(0, 256, (height, width, int(rng.choice([3, 3, 4]))), dtype=np.uint8)[..., :3]
    view = pixels[tuple(steps)] if rng.random() < 0.4 else pixels
    view = view.transpose(1, 0, 2) if rng.random() < 0.2 else view
    return view[..., ::-1] if rng.random() < 0.2 else view, str(rng.choice(["rgb", "bgr"]))


def preprocess(rng: Random) -> None:
    pixels, color = photo(rng)
    crop, stride = some(rng, 40), some(rng, 20)
    size = crop + int(rng.integers(4)) * stride
    dtype, rounding = [("float32", 0.0), ("float16", 2.0**-10), ("bfloat16", 2.0**-7)][rng.integers(3)]
    options = {"antialias": bool(rng.random() < 0.4), "dtype": dtype}
    arguments = size, crop if rng.random() < 0.8 else None, stride, color
    expected = reference.preprocess(pixels, *arguments, **options)
    out = tuple(None if array is None else poisoned(array.shape, array.dtype) for array in expected)
    kernels.preprocess(pixels, *arguments, out=out, **options)
    for pair in zip(out, expected, strict=True):
        if pair[1] is not None:
            ours, theirs = (reference._as_floats(array, dtype == "bfloat16") for array in pair)
            np.testing.assert_allclose(ours, theirs, rtol=rounding, atol=1e-5)


KERNELS: dict[str, Callable[[Random], None]] = {
    "lga_merge": lga_merge,
    "upsample_argmax": upsample_argmax,
    "preprocess": preprocess,
}


def run(name: str, count: int, seed: int) -> None:
    """Raises AssertionError with the case's seed, which alone repeats it."""
    with np.errstate(all="ignore"):
        for case in range(seed, seed + count):
            try:
                KERNELS[name](np.random.default_rng(case))
            except Exception as error:
                raise AssertionError(f"{name}: case {case} (--count 1 --seed {case}): {error}") from error


def available_instructions() -> list[str]:
    """Of the compiled instruction sets, those that this processor has."""
    ask = [sys.executable, *(["-S"] if sys.flags.no_site else []), "-c", "import kernels; kernels.build_info()"]
    environments = [(name, {**os.environ, "DINOV3SEG_CPU": name}) for name in kernels.build_info()["simd"]]
    return [name for name, env in environments if subprocess.run(ask, env=env, capture_output=True).returncode == 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="cases for each kernel")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next have the next")
    count, seed = (getattr(parser.parse_args(), name) for name in ("count", "seed"))
    for name in KERNELS:
        start = time.perf_counter()
        run(name, count, seed)
        using = kernels.build_info()["cpu"]
        print(f"{name} ({using}): {count} cases as the reference, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
