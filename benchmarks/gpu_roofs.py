"""What a GPU reaches at best, by torch in the run that is compared with it: float16 matrix products and copies."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

SIDES = (4096, 8192)
REPEATS = 20
COPY_BYTES = 1 << 30
Clock = Callable[[Callable[[], Any]], float]


class Roofs(BaseModel):
    """None: not measured, and `reason` says why.

    Attributes:
        tflops: 10^12 operations a second of the best of several large float16 matrix products by torch.
        bandwidth: GB/s of a copy on the device, bytes read and bytes written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tflops: float | None = None
    bandwidth: float | None = None
    reason: str = ""


def measure_roofs() -> Roofs:
    if reason := why_no_gpu_torch():
        return Roofs(reason=reason)
    return Roofs(tflops=matrix_peak(clock, "cuda", SIDES), bandwidth=copy_bandwidth(clock, "cuda", COPY_BYTES))


def clock(run: Callable[[], Any]) -> float:
    """Milliseconds between two events around the run."""
    from benchmarks.torch_frame import Watch

    watch = Watch("cuda")
    run()
    return watch.stop()["device"]


def why_no_gpu_torch() -> str:
    """Why torch measures nothing on a GPU here; "" if it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return "" if torch.cuda.is_available() else "this torch sees no GPU: install the build for your driver"


def matrix_peak(clock: Clock, device: str, sides: Sequence[int]) -> float:
    """10^12 operations a second. `clock` gives the milliseconds of a call."""
    import torch

    rates = []
    for side in sides:
        a, b = (torch.randn(side, side, device=device, dtype=torch.float16) for _ in range(2))
        out = torch.empty_like(a)
        milliseconds = min(clock(partial(torch.mm, a, b, out=out)) for _ in range(REPEATS))
        rates.append(2 * side**3 / milliseconds / 1e9)
    return max(rates)


def copy_bandwidth(clock: Clock, device: str, size: int) -> float:
    """GB/s."""
    import torch

    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    return 2 * size / min(clock(lambda: target.copy_(source)) for _ in range(REPEATS)) / 1e6
