"""What `kernels.py` measures on a GPU: our kernels beside torch's, timed by events on one stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.kernel_cases import CLASSES, MEAN, SIDE, SIZE, STD, Case, Run
from kernels import cuda_api

COPY_BYTES = 1 << 30


def clock(run: Callable[[], Any]) -> float:
    """Milliseconds between two events around the run."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def triad() -> tuple[int, Run]:
    """The device's copy: bytes read and written, and the run."""
    source, target = (torch.ones(COPY_BYTES // 4, device="cuda") for _ in range(2))
    return 2 * COPY_BYTES, lambda _: target.copy_(source)


def stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def cases(logits: Callable[[int], NDArray[Any]], source: str) -> Iterator[Case]:
    yield from (lga_merge(4, 16), lga_merge(9, 8))
    for count in CLASSES:
        yield upsample_argmax(f"{source}, K={count}", torch.from_numpy(np.ascontiguousarray(logits(count))).cuda())
        yield upsample_argmax(f"white noise, K={count}", torch.randn(count, SIDE, SIDE, device="cuda"))
        yield upsample_argmax(f"all equal, K={count}", torch.zeros(count, SIDE, SIDE, device="cuda"))
    yield from (preprocess(384, 256), preprocess(384, 128))


def lga_merge(count: int, stride: int, channels: int = 1024) -> Case:
    per_axis = int(count**0.5)
    grid = 24 + (per_axis - 1) * stride
    crops, full = torch.randn(count, 576, channels, device="cuda"), torch.randn(grid**2, channels, device="cuda")
    halves, merged = (crops.half(), full.half()), torch.empty_like(full)
    covered = torch.zeros(grid, grid, 1, device="cuda")
    corners = [(i // per_axis * stride, i % per_axis * stride) for i in range(count)]
    for y, x in corners:
        covered[y : y + 24, x : x + 24] += 1

    def ours(_: int, dtype: str = "float32") -> None:
        sources = (crops, full) if dtype == "float32" else halves
        addresses = (*(tensor.data_ptr() for tensor in sources), merged.data_ptr())
        cuda_api.lga_merge(*addresses, shape=tuple(crops.shape), stride=stride, dtype=dtype, stream=stream())

    def torch_slices(_: int) -> torch.Tensor:
        total = torch.zeros(grid, grid, channels, device="cuda")
        for tile, (y, x) in zip(crops.unflatten(1, (24, 24)), corners, strict=True):
            total[y : y + 24, x : x + 24] += tile
        return ((total / covered).flatten(0, 1) + full) / 2

    return Case(
        kernel="lga_merge",
        inputs=f"C={channels}, {count} crops of 24x24 in {grid}x{grid}",
        moved=4 * (crops.numel() + 2 * full.numel()),
        operations=crops.numel() + 2 * full.numel(),
        contestants={"ours": ours, "ours, float16": lambda i: ours(i, "float16"), "torch slices": torch_slices},
    )


def upsample_argmax(inputs: str, logits: torch.Tensor) -> Case:
    classes, size = len(logits), (SIZE, SIZE)
    labels = torch.empty(size, dtype=torch.uint8 if classes <= 255 else torch.uint16, device="cuda")
    addresses = logits.data_ptr(), labels.data_ptr()

    def ours(_: int, prune: bool = True) -> None:
        cuda_api.upsample_argmax(*addresses, shape=tuple(logits.shape), size=size, prune=prune, stream=stream())

    def torch_argmax(_: int) -> torch.Tensor:
        return F.interpolate(logits[None], size, mode="bilinear").argmax(1)

    ours(0)
    agreement = (labels.to(torch.int64) == torch_argmax(0)[0]).double().mean().item()
    return Case(
        kernel="upsample_argmax",
        inputs=f"{inputs}, {SIDE}x{SIDE} to {SIZE}x{SIZE}",
        moved=4 * logits.numel() + labels.numel() * labels.element_size(),
        operations=7 * classes * SIZE * SIZE,
        contestants={"ours": ours, "ours, direct": lambda i: ours(i, prune=False), "torch": torch_argmax},
        agreement=agreement,
    )


def preprocess(crop: int, stride: int) -> Case:
    photo = torch.randint(0, 256, (720, 1280, 3), dtype=torch.uint8, device="cuda")
    offsets = [(y, x) for y in range(0, SIZE - crop + 1, stride) for x in range(0, SIZE - crop + 1, stride)]
    image = torch.empty(1, 3, SIZE, SIZE, device="cuda")
    crops = torch.empty(len(offsets), 3, crop, crop, device="cuda")
    mean, std = (torch.from_numpy(values).view(3, 1, 1).cuda() for values in (MEAN, STD))
    addresses = photo.data_ptr(), image.data_ptr(), crops.data_ptr()

    def ours(_: int) -> None:
        cuda_api.preprocess(*addresses, shape=(720, 1280), size=SIZE, crop=crop, stride=stride, stream=stream())

    def torch_resize(_: int) -> Any:
        resized = F.interpolate(photo.permute(2, 0, 1)[None].float(), (SIZE, SIZE), mode="bilinear")
        normal = (resized / 255 - mean) / std
        return normal, torch.cat([normal[:, :, y : y + crop, x : x + crop] for y, x in offsets])

    return Case(
        kernel="preprocess",
        inputs=f"1280x720 to {SIZE}x{SIZE} and {len(offsets)} crops of {crop}x{crop}",
        moved=photo.numel() + 4 * (image.numel() + crops.numel()),
        operations=3 * (3 * 1280 * SIZE + 5 * SIZE * SIZE),
        contestants={"ours": ours, "torch": torch_resize},
    )
