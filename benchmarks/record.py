"""The schema of a result file: who reads one later can tell exactly what was measured, where and how."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.alone import Alone
from benchmarks.gpu_state import GpuState
from benchmarks.machine import Machine, slug
from benchmarks.measure import Frame, Spread
from benchmarks.stage_profile import StageProfile
from runtime.bundle import MANIFEST, Bundle, sha256
from runtime.geometry import Geometry

BOUNDARY = "uint8 photo in memory -> label map of its size in memory, text cached"
METHOD = {
    "warm": "all contestants in one process, in turn frame by frame, so that fast and slow spells meet both",
    "alone": "one clean process for each contestant: start-up, first frame and peak memory; file caches not dropped",
    "ratio": "torch over engine, the median over rounds",
}
TORCH_WORDS = {"torch": "torch eager fp32", "torch half": "torch eager fp16", "torch compile": "torch.compile fp16"}
GPU_METHOD = {
    "device": "between two CUDA events around all work of a frame, copies of photo and labels included; "
    "total: wall clock, waited for",
    "torch": "the whole frame in torch on the GPU, its own operations in place of our kernels; TF32 off; half: modules "
    "in float16; compile: torch.compile in its default mode, static shapes",
    "stages": "the frame launched stage by stage with CUDA events around every engine call and kernel, median; "
    "streams overlap, so the stages may add up to more than the frame, which is launched as one graph",
    "FLOPs": "matrix products and convolutions of each stage's graph, for as many classes as were asked for; "
    "kernels: bytes that must move at least",
    "roofs": "best of several large float16 matrix products and of copies on the device, by torch in the same run",
}


class Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleIdentity(Entry):
    name: str
    manifest_sha256: str
    random_weights: bool

    @classmethod
    def of(cls, bundle: Bundle) -> BundleIdentity:
        return cls(
            name=bundle.manifest.name,
            manifest_sha256=sha256(bundle.root / MANIFEST),
            random_weights=bundle.manifest.random_weights,
        )


class Workload(Entry):
    """`photo_size` is (height, width)."""

    photo: str
    photo_size: tuple[int, int]
    classes: int
    geometry: Geometry
    warmup: int
    frames: int
    boundary: str = BOUNDARY


class Occasion(Entry):
    """What every result says: when, how, where and with what it came about.

    Attributes:
        load_average: Before and after, over 1, 5 and 15 minutes; None where the system does not tell.
    """

    schema_version: int = 1
    date: str
    command: str
    machine: Machine
    versions: dict[str, str]
    load_average: tuple[tuple[float, ...] | None, tuple[float, ...] | None]


class Run(Occasion):
    """A run of a bundle."""

    threads: int
    bundle: BundleIdentity


class Record(Run):
    """One latency run. Times in milliseconds, memory in MiB.

    Attributes:
        method: How it was measured.
        without_torch: Why torch was not measured; None if it was.
        precision: By stage, read back from the engines.
        agreement: Share of pixels that engine and torch in fp32 label alike; `torch_agreement`: of torch's other ways.
        gpu, profile: None on a CPU.
        remarks: What a reader must know before quoting a number.
    """

    schema_version: int = 2
    backend: str
    asked_precision: str
    precision: dict[str, str]
    workload: Workload
    method: dict[str, str] = METHOD
    without_torch: str | None
    agreement: float | None
    torch_agreement: dict[str, float] = {}
    gpu: GpuState | None = None
    profile: StageProfile | None = None
    remarks: tuple[str, ...]
    alone: tuple[Alone, ...]
    warm: dict[str, dict[str, Spread]]
    ratio: dict[str, dict[str, float]]
    frames: tuple[Frame, ...]

    @property
    def stem(self) -> str:
        return f"{slug(self.bundle.name)}-{self.backend}-{self.asked_precision}"

    @property
    def hardware(self) -> str:
        return f"{self.machine.cpu}, {self.threads} threads" if self.gpu is None else str(self.gpu)

    @property
    def title(self) -> tuple[str, ...]:
        """Lines; the first is the largest."""
        work = self.workload
        height, width = work.photo_size
        name = f"{self.bundle.name}: {self.backend} {self.asked_precision}, K = {work.classes} classes"
        data = (
            f"photo {width}x{height}, model input {work.geometry.image_size} px and {work.geometry.crops} crops of "
            f"{work.geometry.crop_size} px"
        )
        return (name, f"{self.hardware}; {data}") if self.gpu is None else (name, self.hardware, data)

    @property
    def note(self) -> str:
        return " ".join(self.remarks)

    def means(self) -> dict[str, dict[str, float]]:
        """Milliseconds by contestant and stage, the contestants in words.

        A frame on a GPU has one part on the device and one before and after it.
        """
        found = {}
        for name, stages in self.warm.items():
            means = {stage: spread.mean for stage, spread in stages.items()}
            if "device" in means:
                means = {"device": means["device"], "host": means["total"] - means["device"]} | means
            found["\n".join(self.words(name).rsplit(" ", 1))] = means
        return found

    def words(self, name: str) -> str:
        return f"{self.backend} {self.asked_precision}" if name == "engine" else TORCH_WORDS[name]


def photo_size(pixels: Path) -> tuple[int, int]:
    """(height, width) of a .npy file."""
    height, width = np.load(pixels, mmap_mode="r").shape[:2]
    return height, width


def relative_command(program: str, arguments: Sequence[str]) -> str:
    """The command line to repeat this, with paths of this machine cut to what lies below the working folder."""
    return shlex.join(["python", program, *map(_without_folders, arguments)])


def _without_folders(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value).expanduser()
    if not path.is_absolute():
        return argument
    short = path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.name
    return f"{option}{equals}{short}"


def caveats(asked: str, precision: Mapping[str, str], random_weights: bool, on_gpu: bool = False) -> list[str]:
    """Sentences that must stand beside the numbers."""
    found, really = [], ", ".join(dict.fromkeys(precision.values()))
    if on_gpu:
        other = [stage for stage, words in precision.items() if not words.startswith(asked)]
        if other:
            found.append(f"{asked} was asked for, but {', '.join(other)} do not compute in it; read back: {really}.")
    elif asked != "fp32" and asked not in precision.values():
        how = "runs the fp16 graph with casts" if asked == "fp16" else f"does not compute in {asked}"
        found.append(f"This CPU {how}, so these numbers say nothing about an engine in {asked}; read back: {really}.")
    if random_weights:
        found.append("The weights are random: speed and memory are the model's, the labels mean nothing.")
    return found


def busy(load: tuple[float, ...] | None, cores: int) -> list[str]:
    if load is None or load[0] <= cores / 2:
        return []
    # Threads that wait for each other at a barrier suffer most from a taken core, and libraries differ in that.
    return [f"Others used this machine (load average {load[0]:.1f} on {cores} cores): times and ratios are distorted."]
