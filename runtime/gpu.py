"""The GPU of this machine, as cuda-core sees it; none is not an error."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import EngineError


@dataclass(frozen=True)
class Gpu:
    """One device. An integrated GPU shares the memory of the machine."""

    name: str
    compute_capability: str  # "8.9"
    integrated: bool


def cuda_core() -> Any:
    """NVIDIA's cuda-core. Its classes left the `experimental` module with version 1.

    Raises:
        EngineError: it is not installed, or cuda-bindings is not, which it imports but does not ask pip for.
    """
    for name in ("cuda.core", "cuda.core.experimental"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(module, "Device"):
            return module
    raise EngineError(
        "cuda-core or cuda-bindings is not installed; pip install cuda-core cuda-bindings (all they need is a driver)"
    )


def find_gpu() -> Gpu | None:
    """Device 0, or None where there is no cuda-core, driver or device: cuda-core raises other errors for each."""
    try:
        device = cuda_core().Device(0)
        major, minor = device.compute_capability
        return Gpu(str(device.name), f"{major}.{minor}", bool(device.properties.integrated))
    except Exception:
        return None


def free_memory() -> int:
    """Free bytes of the GPU; of the machine where the GPU is part of it.

    Raises:
        EngineError: cuda-core or cuda-bindings is missing.
    """
    gpu = find_gpu()
    if gpu is not None and not gpu.integrated:
        try:
            runtime = importlib.import_module("cuda.bindings.runtime")
        except ImportError:
            raise EngineError("cuda-bindings is not installed; pip install cuda-bindings") from None
        status, free, _ = runtime.cudaMemGetInfo()
        if int(status) == 0:
            return int(free)
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
