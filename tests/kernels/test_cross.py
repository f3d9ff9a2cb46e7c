"""The NEON kernels, cross-compiled and run by QEMU's user emulation, against the reference."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kernels import reference

ROOT = Path(__file__).resolve().parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
FLAGS = ["-std=c++17", "-O2", "-static", "-fopenmp", "-ffp-contract=off", "-fno-trapping-math"]
DEFINITIONS = ["-DKERNELS_ISA=neon", "-DKERNELS_BASELINE=neon"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}"
    ),
]


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    program = tmp_path_factory.mktemp("cross") / "replay"
    sources = sorted((ROOT / "kernels/cpu").rglob("*.cpp"))
    includes = [f"-I{ROOT / folder}" for folder in ("kernels/include", "kernels/cpu")]
    command = [COMPILER, *FLAGS, *DEFINITIONS, *includes, *sources, Path(__file__).with_name("replay.cpp")]
    subprocess.run([*command, "-o", program], check=True)

    def run(kernel: str, numbers: list[int], *arrays: np.ndarray) -> bytes:
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        command = [EMULATOR, str(program), kernel, *map(str, map(int, numbers))]
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout

    return run


def stored(values: np.ndarray, storage: int) -> np.ndarray:
    return [lambda v: v, lambda v: v.astype(np.float16), reference._bfloat_bits][storage](values)


@pytest.mark.parametrize("geometry", [(1, 3, 1, 5), (2, 6, 4, 40), (3, 6, 2, 33), (5, 7, 1, 17)])
@pytest.mark.parametrize("storage", [0, 1, 2])
@pytest.mark.parametrize("channels_first", [0, 1])
def test_lga_merge(replay, geometry, storage, channels_first):
    per_axis, crop_grid, stride, channels = geometry
    grid = crop_grid + (per_axis - 1) * stride
    rng = np.random.default_rng(0)
    crops = stored(rng.standard_normal((per_axis**2, crop_grid**2, channels), dtype=np.float32), storage)
    full = stored(rng.standard_normal((grid**2, channels), dtype=np.float32), storage)
    options = {"channels_first": bool(channels_first), "bfloat16": storage == 2}
    expected = reference.lga_merge(crops, full, stride, **options)
    given = replay("lga_merge", [*geometry, storage, 0, channels_first, 1], crops, full)
    assert np.array_equal(np.frombuffer(given, expected.dtype).reshape(expected.shape), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 3), (20, 24, 31), (300, 12, 13)])
@pytest.mark.parametrize("size", [(90, 101), (7, 5)])
@pytest.mark.parametrize("storage", [0, 1, 2])
def test_upsample_argmax(replay, shape, size, storage):
    rng = np.random.default_rng(1)
    logits = np.round(rng.standard_normal(shape, dtype=np.float32) * 8)  # with ties
    logits[rng.random(shape) < 0.02] = np.nan
    logits = stored(logits, storage)
    labels, scores = reference.upsample_argmax(logits, size, scores=True, bfloat16=storage == 2)
    given = replay("upsample_argmax", [*shape, *size, storage], logits)
    assert np.array_equal(np.frombuffer(given[: labels.nbytes], labels.dtype).reshape(size), labels)
    assert np.array_equal(np.frombuffer(given[labels.nbytes :], np.float32).reshape(size), scores, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 1), (37, 53), (150, 90)])
@pytest.mark.parametrize("antialias", [0, 1])
@pytest.mark.parametrize("storage", [0, 1, 2])
def test_preprocess(replay, shape, antialias, storage):
    photo = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    dtype, rounding = [("float32", 0.0), ("float16", 2.0**-10), ("bfloat16", 2.0**-7)][storage]
    expected = reference.preprocess(photo, 48, 32, 16, antialias=bool(antialias), dtype=dtype)
    both = np.concatenate([array.ravel() for array in expected])
    given = np.frombuffer(replay("preprocess", [*shape, 48, 32, 16, antialias, storage], photo), both.dtype)
    ours, theirs = (reference._as_floats(array, storage == 2) for array in (given, both))
    np.testing.assert_allclose(ours, theirs, rtol=rounding, atol=1e-5)
