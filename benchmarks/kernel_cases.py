"""What `kernels.py` measures on the CPU: our kernels beside everything else here that can do the same job.

Inputs and results rotate through enough memory that nobody finds them in the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import kernels
from benchmarks import kernel_graphs
from kernels import _kernels, reference

Array = NDArray[Any]
Run = Callable[[int], Any]  # with the number of the call, which picks the memory

COLD_BYTES = 96 << 20
CLASSES = (20, 150, 847)
SIDE, SIZE = 160, 640
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Case:
    """Contestants do the same job; "ours" is the first.

    Attributes:
        moved: Bytes that any method must read and write at least once.
        operations: Floating-point operations of the direct method.
        agreement: Share of equal results, ours against torch; None where results are numbers, which tests compare.
    """

    kernel: str
    inputs: str
    moved: int
    operations: int
    contestants: Mapping[str, Run]
    agreement: float | None = None


def prepare() -> None:
    """One thread each. OMP_NUM_THREADS=1 must be set before anything is imported."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def triad() -> tuple[int, Run]:
    """STREAM's a = b + s*c on arrays that no cache holds: bytes and the run."""
    a, b, c = (torch.ones(COLD_BYTES // 4) for _ in range(3))
    return 3 * COLD_BYTES, lambda _: torch.add(b, c, alpha=3.0, out=a)


def copies(*arrays: Array) -> list[tuple[Array, ...]]:
    """So many that together they are larger than the caches."""
    count = min(64, -(-COLD_BYTES // sum(array.nbytes for array in arrays)))
    return [tuple(array.copy() for array in arrays) for _ in range(max(2, count))]


def session(model: bytes) -> Callable[[dict[str, Array]], list[Array]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    opened = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda inputs: opened.run(None, inputs)


def next_best() -> str | None:
    """The instruction set after the one in use: an older processor of the same kind has it as its best."""
    info = kernels.build_info()
    later = info["simd"][info["simd"].index(info["cpu"]) + 1 :]
    return later[0] if later else None


def with_older(ours: Run) -> dict[str, Run]:
    """Ours once more with the instructions of an older processor, where there is one."""
    best, older = kernels.build_info()["cpu"], next_best()
    if older is None:
        return {}

    def run(i: int) -> Any:
        _kernels.use_instructions(older)
        try:
            return ours(i)
        finally:
            _kernels.use_instructions(best)

    return {f"ours, {older}": run}


def cases(logits: Callable[[int], Array], source: str) -> Iterator[Case]:
    """`logits(K)` are smooth ones (K, 160, 160); `source` says whose."""
    yield from (lga_merge(4, 16), lga_merge(9, 8))
    rng = np.random.default_rng(0)
    for count in CLASSES:
        yield upsample_argmax(f"{source}, K={count}", logits(count))
        yield upsample_argmax(f"white noise, K={count}", rng.standard_normal((count, SIDE, SIDE), dtype=np.float32))
        yield upsample_argmax(f"all equal, K={count}", np.zeros((count, SIDE, SIDE), np.float32))
    yield from (preprocess(384, 256), preprocess(384, 128))


def lga_merge(count: int, stride: int, channels: int = 1024) -> Case:
    rng = np.random.default_rng(count)
    grid = 24 + (int(count**0.5) - 1) * stride
    crops = rng.standard_normal((count, 24 * 24, channels), dtype=np.float32)
    full = rng.standard_normal((grid**2, channels), dtype=np.float32)
    sets = copies(crops, full, full)
    halves = [tuple(array.astype(np.float16) for array in arrays) for arrays in sets]
    runtime = session(kernel_graphs.lga_merge(count, 24, stride, channels))

    def ours(i: int) -> Array:
        crops, full, out = sets[i % len(sets)]
        return kernels.lga_merge(crops, full, stride, out=out)

    def ours_half(i: int) -> Array:
        crops, full, out = halves[i % len(halves)]
        return kernels.lga_merge(crops, full, stride, out=out)

    def numpy_slices(i: int) -> Array:
        crops, full, out = sets[i % len(sets)]
        return reference.lga_merge(crops, full, stride, out=out)

    def torch_fold(i: int) -> torch.Tensor:
        crops, full = (torch.from_numpy(array) for array in sets[i % len(sets)][:2])
        columns = crops.permute(2, 1, 0).reshape(1, -1, count)  # (1, C * g*g, n)
        total = F.fold(columns, (grid, grid), (24, 24), stride=stride)
        covered = F.fold(torch.ones(1, 24 * 24, count), (grid, grid), (24, 24), stride=stride)
        return ((total / covered)[0].flatten(1).T + full) / 2

    def onnx_runtime(i: int) -> list[Array]:
        crops, full, _ = sets[i % len(sets)]
        return runtime({"crops": crops, "full": full})

    return Case(
        kernel="lga_merge",
        inputs=f"C={channels}, {count} crops of 24x24 in {grid}x{grid}",
        moved=crops.nbytes + 2 * full.nbytes,
        operations=crops.size + 2 * full.size,
        contestants={
            "ours": ours,
            **with_older(ours),
            "ours, float16": ours_half,
            "numpy slices": numpy_slices,
            "torch fold": torch_fold,
            "ONNX Runtime": onnx_runtime,
        },
    )


def upsample_argmax(inputs: str, logits: Array) -> Case:
    classes, size = len(logits), (SIZE, SIZE)
    sets = copies(logits)
    labels = np.empty(size, np.uint8 if classes <= 255 else np.uint16)
    strips = [np.ascontiguousarray(array.transpose(1, 0, 2)).transpose(1, 0, 2) for (array,) in sets[:2]]
    runtime = session(kernel_graphs.upsample_argmax(classes, SIZE / SIDE))

    def direct(i: int) -> None:
        _kernels.upsample_argmax(sets[i % len(sets)][0], 0, labels, None, prune=False)

    def torch_argmax(i: int) -> torch.Tensor:
        upsampled = F.interpolate(torch.from_numpy(sets[i % len(sets)][0])[None], size, mode="bilinear")
        return upsampled.argmax(1)

    def opencv(i: int) -> Array:
        (array,) = sets[i % len(sets)]
        best, found = cv2.resize(array[0], size), np.zeros(size, labels.dtype)
        for k in range(1, classes):
            value = cv2.resize(array[k], size)
            wins = value > best
            best[wins], found[wins] = value[wins], k
        return found

    def ours(i: int) -> Array:
        return kernels.upsample_argmax(sets[i % len(sets)][0], size, out=labels)

    contestants: dict[str, Run] = {
        "ours": ours,
        **with_older(ours),
        "ours, direct": direct,
        "ours, strips": lambda i: kernels.upsample_argmax(strips[i % 2], size, out=labels),
        "torch": torch_argmax,
        "OpenCV": opencv,
        "ONNX Runtime": lambda i: runtime({"logits": sets[i % len(sets)][0][None]}),
    }
    if classes <= 20:
        contestants["numpy"] = lambda i: reference.upsample_argmax(sets[i % len(sets)][0], size)
    return Case(
        kernel="upsample_argmax",
        inputs=f"{inputs}, {SIDE}x{SIDE} to {SIZE}x{SIZE}",
        moved=logits.nbytes + labels.nbytes,
        operations=7 * classes * SIZE * SIZE,
        contestants=contestants,
        agreement=float(np.mean(contestants["ours"](0) == torch_argmax(0)[0].numpy())),
    )


def preprocess(crop: int, stride: int) -> Case:
    photo = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    results = kernels.preprocess(photo, SIZE, crop, stride)
    sets = [(photo.copy(), kernels.preprocess(photo, SIZE, crop, stride)) for _ in range(6)]
    offsets = [(y, x) for y in range(0, SIZE - crop + 1, stride) for x in range(0, SIZE - crop + 1, stride)]
    runtime = session(kernel_graphs.preprocess(SIZE, crop, offsets))
    mean, std = (torch.from_numpy(values).view(3, 1, 1) for values in (MEAN, STD))

    def ours(i: int) -> Any:
        source, out = sets[i % len(sets)]
        return kernels.preprocess(source, SIZE, crop, stride, out=out)

    def opencv(i: int) -> Any:
        resized = cv2.resize(sets[i % len(sets)][0], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        normal = (resized.astype(np.float32) / 255 - MEAN) / STD
        image = np.ascontiguousarray(normal.transpose(2, 0, 1))[None]
        return image, np.concatenate([image[:, :, y : y + crop, x : x + crop] for y, x in offsets])

    def torch_resize(i: int) -> Any:
        planes = torch.from_numpy(sets[i % len(sets)][0]).permute(2, 0, 1)[None].float()
        image = (F.interpolate(planes, (SIZE, SIZE), mode="bilinear") / 255 - mean) / std
        return image, torch.cat([image[:, :, y : y + crop, x : x + crop] for y, x in offsets])

    return Case(
        kernel="preprocess",
        inputs=f"1280x720 to {SIZE}x{SIZE} and {len(offsets)} crops of {crop}x{crop}",
        moved=photo.nbytes + sum(array.nbytes for array in results),
        operations=3 * (3 * 1280 * SIZE + 5 * SIZE * SIZE),
        contestants={
            "ours": ours,
            **with_older(ours),
            "OpenCV and numpy": opencv,
            "torch": torch_resize,
            "numpy": lambda i: reference.preprocess(sets[i % len(sets)][0], SIZE, crop, stride),
            "ONNX Runtime": lambda i: runtime({"photo": sets[i % len(sets)][0]}),
        },
    )


def hills(classes: int) -> Array:
    """Smooth logits of no model: each class a few broad hills."""
    rng = np.random.default_rng(classes)
    planes = rng.standard_normal((classes, SIDE // 8, SIDE // 8), dtype=np.float32)
    return np.stack([cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for plane in planes])
