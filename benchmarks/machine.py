"""What a number was measured on: processor, cores, memory, library versions, and how busy the machine was."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

PACKAGES = (
    "dinov3seg-deploy",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
    "cuda-core",
    "cuda-bindings",
    "torch",
)


class Machine(BaseModel):
    """`slug` names the results folder; the GPU's, where one was measured. `cores` are those this process may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slug: str
    cpu: str
    cores: int
    memory_gb: float | None
    os: str
    python: str


def this_machine(gpu: str | None = None) -> Machine:
    """`gpu`: the name of the GPU, where it is what was measured."""
    cpu, cores = cpu_name(), usable_cores()
    return Machine(
        slug=machine_slug(cpu, cores) if gpu is None else slug(gpu),
        cpu=cpu,
        cores=cores,
        memory_gb=memory_gb(),
        os=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The model name; where the system has no such file or no such line (ARM), what Python knows."""
    try:
        found = re.search(r"^model name\s*:\s*(\S.*)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown"


def machine_slug(cpu: str, cores: int) -> str:
    """cpu-amd-epyc-7b13-2core: without trade marks, clock rate and the size of the whole chip."""
    noise = r"\((r|tm|c)\)|@.*|\d+-core|\b(processor|cpu|with .*)\b"
    return f"cpu-{slug(re.sub(noise, ' ', cpu.lower()))}-{cores}core"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unknown"


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def load_average() -> tuple[float, ...] | None:
    """Over 1, 5 and 15 minutes."""
    return tuple(round(value, 2) for value in os.getloadavg()) if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_memory_mb() -> float:
    """The largest resident size of this process so far.

    Linux carries `ru_maxrss` over from the parent that started a process; VmHWM is the process's own.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        return _peak_without_proc()


def _peak_without_proc() -> float:
    import sys

    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset / 2**20)
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
