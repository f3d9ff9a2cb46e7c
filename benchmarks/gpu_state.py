"""What a GPU was when a number was measured: driver, clocks, power limit. Read from nvidia-smi where it is there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from runtime.gpu import Gpu

SECONDS = 10.0  # a tool that takes longer hangs
FIELDS = {
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "most_sm_mhz": "clocks.max.sm",
    "power_limit_w": "power.limit",
    "celsius": "temperature.gpu",
}
QUERY = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(FIELDS.values())}", "--format=csv,noheader,nounits"]
Run = Callable[[list[str]], str]


class GpuState(BaseModel):
    """None or "": not to be found out here.

    Attributes:
        cuda: The latest version that the driver runs.
        sm_mhz, memory_mhz: Clocks when the last frame was done; `most_sm_mhz` is the highest that the card has.
        power_mode: Of a Jetson.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    compute_capability: str
    driver: str = ""
    cuda: str = ""
    sm_mhz: float | None = None
    memory_mhz: float | None = None
    most_sm_mhz: float | None = None
    power_limit_w: float | None = None
    celsius: float | None = None
    power_mode: str = ""

    def __str__(self) -> str:
        parts = [f"{self.name} (compute capability {self.compute_capability})"]
        parts += [f"driver {self.driver}"] if self.driver else []
        parts += [f"CUDA {self.cuda}"] if self.cuda else []
        parts += [f"SM at {self.sm_mhz:.0f} of {self.most_sm_mhz:.0f} MHz"] if self.sm_mhz and self.most_sm_mhz else []
        parts += [f"memory at {self.memory_mhz:.0f} MHz"] if self.memory_mhz else []
        parts += [f"power limit {self.power_limit_w:.0f} W"] if self.power_limit_w else []
        parts += [f"power mode {self.power_mode}"] if self.power_mode else []
        return ", ".join(parts)


def run_tool(command: list[str]) -> str:
    """What it prints; "" where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def gpu_state(gpu: Gpu, run: Run = run_tool) -> GpuState:
    return GpuState(
        name=gpu.name,
        compute_capability=gpu.compute_capability,
        cuda=_find(r"CUDA Version: ([\d.]+)", run(["nvidia-smi"])),
        power_mode=_find(r"NV Power Mode: (\S+)", run(["nvpmodel", "-q"])) if gpu.integrated else "",
        **parse(run(QUERY)),
    )


def parse(printed: str) -> dict[str, Any]:
    """The fields of one line of nvidia-smi; what it does not know is "[N/A]" or "[Not Supported]"."""
    values = [part.strip() for part in printed.strip().partition("\n")[0].split(",")]
    if len(values) != len(FIELDS):
        return {}
    found: dict[str, Any] = {}
    for name, value in zip(FIELDS, values, strict=True):
        if name == "driver":
            found[name] = "" if value.startswith("[") else value
        else:
            found[name] = float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else None
    return found


def used_memory_mb(run: Run = run_tool) -> float | None:
    """Of the GPU, by all processes. Asked from outside, so that the asking process needs no context for it."""
    printed = run(["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]).strip()
    return float(printed) if printed.isdecimal() else None


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""
