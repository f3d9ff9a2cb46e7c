"""What this machine is and has. Every probe stands alone: a missing tool is a missing fact, never an error."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

SECONDS = 10.0  # a tool that takes longer hangs
PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "tensorrt-rtx-cu12",
    "cuda-core",
    "cuda-bindings",
)
LIBRARIES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
# JetPack by its board support package, where its own package is not installed: in containers, for one.
JETPACKS = {
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
}
Run = Callable[[list[str]], str]


class Facts(BaseModel):
    """Sizes in bytes; "" or None: not there, or not to be found out.

    Attributes:
        cards: NVIDIA devices on the PCI bus, with or without a driver.
        cuda: Version of the toolkit, or the latest one that the driver runs.
        l4t: Jetson's board support package, e.g. "36.4.3"; empty elsewhere.
        power: Power mode of a Jetson, or power limit of a card.
        packages: Version of what is installed.
        broken: Installed libraries that cannot be imported, and why.
        providers: Of ONNX Runtime.
        simd: Instruction set that our kernels use on this processor.
    """

    python: str = ""
    system: str = ""
    machine: str = ""
    gpu: str = ""
    compute_capability: str = ""
    integrated: bool = False
    cards: int = 0
    driver: str = ""
    cuda: str = ""
    l4t: str = ""
    jetpack: str = ""
    power: str = ""
    packages: dict[str, str] = {}
    broken: dict[str, str] = {}
    providers: tuple[str, ...] = ()
    simd: str = ""
    free_memory: int | None = None
    free_gpu_memory: int | None = None
    free_disk: int | None = None


def run_tool(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout


def collect(root: Path = Path("/"), run: Run = run_tool) -> Facts:
    """
    Args:
        root: Where the system's files lie.
        run: Runs a command and returns what it prints.
    """
    facts = Facts(
        python=platform.python_version(),
        system=" ".join((platform.system(), platform.release())),
        machine=platform.machine(),
        packages=installed(),
    )
    for probe in (_libraries, _kernels, _gpu, _memory_of_gpu):
        _quietly(probe, facts)
    for reader in (_cards, _driver, _l4t, _packages, _jetpack, _toolkit, _memory, _disk):
        _quietly(lambda found, reader=reader: reader(found, root), facts)  # type: ignore[misc]
    for tool in (_power, _cuda):
        _quietly(lambda found, tool=tool: tool(found, run), facts)  # type: ignore[misc]
    return facts


def _quietly(probe: Callable[[Facts], None], facts: Facts) -> None:
    try:
        probe(facts)
    except Exception:  # whatever a broken installation throws
        return


def installed() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _libraries(facts: Facts) -> None:
    for name in LIBRARIES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except Exception as error:
            facts.broken[name] = " ".join(str(error).split())[:200]
            continue
        dashed = name.replace("_", "-")
        if not any(package.startswith(dashed) for package in facts.packages):  # JetPack's has no package record
            facts.packages[dashed] = str(getattr(module, "__version__", ""))
        if name == "onnxruntime":
            facts.providers = tuple(module.get_available_providers())


def _kernels(facts: Facts) -> None:
    import kernels

    facts.simd = str(kernels.build_info()["cpu"])


def _gpu(facts: Facts) -> None:
    from runtime.gpu import find_gpu

    gpu = find_gpu()
    if gpu is not None:
        facts.gpu, facts.compute_capability, facts.integrated = gpu.name, gpu.compute_capability, gpu.integrated


def _memory_of_gpu(facts: Facts) -> None:
    from runtime.gpu import free_memory

    if facts.gpu and not facts.integrated:
        facts.free_gpu_memory = free_memory()


def _cards(facts: Facts, root: Path) -> None:
    devices = (root / "sys/bus/pci/devices").glob("*")
    kinds = [((one / "vendor").read_text().strip(), (one / "class").read_text().strip()) for one in devices]
    facts.cards = sum(vendor == "0x10de" and kind.startswith(("0x0300", "0x0302")) for vendor, kind in kinds)


def _driver(facts: Facts, root: Path) -> None:
    text = (root / "proc/driver/nvidia/version").read_text()
    found = re.search(r"(?:Kernel Module|for \w+)\s+(\d+\.\d+(?:\.\d+)?)", text)
    facts.driver = found.group(1) if found else ""


def _l4t(facts: Facts, root: Path) -> None:
    text = (root / "etc/nv_tegra_release").read_text()
    found = re.search(r"R(\d+).*REVISION: ([\d.]+)", text)
    facts.l4t = f"{found.group(1)}.{found.group(2)}" if found else ""


def _packages(facts: Facts, root: Path) -> None:
    """From the package list: `apt` needs seconds and a network configuration."""
    text = (root / "var/lib/dpkg/status").read_text(errors="replace")
    found = re.search(r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: ([\d.]+)", text, re.MULTILINE)
    facts.jetpack = found.group(1) if found else ""
    cuda = re.search(r"^Package: cuda-(?:toolkit|runtime)-(\d+)-(\d+)$", text, re.MULTILINE)
    facts.cuda = f"{cuda.group(1)}.{cuda.group(2)}" if cuda else facts.cuda


def _jetpack(facts: Facts, root: Path) -> None:
    facts.jetpack = facts.jetpack or JETPACKS.get(facts.l4t.removesuffix(".0"), "")


def _toolkit(facts: Facts, root: Path) -> None:
    if not facts.cuda:
        found = re.search(
            r'"cuda"\s*:\s*{[^}]*"version"\s*:\s*"([\d.]+)"', (root / "usr/local/cuda/version.json").read_text()
        )
        facts.cuda = found.group(1) if found else ""


def _memory(facts: Facts, root: Path) -> None:
    found = re.search(r"MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text())
    facts.free_memory = int(found.group(1)) * 1024 if found else None


def _disk(facts: Facts, root: Path) -> None:
    facts.free_disk = shutil.disk_usage(root).free


def _power(facts: Facts, run: Run) -> None:
    if facts.l4t:
        found = re.search(r"NV Power Mode: (\S+)", run(["nvpmodel", "-q"]))
        facts.power = found.group(1) if found else ""
    else:
        query = ["nvidia-smi", "--query-gpu=power.limit,driver_version", "--format=csv,noheader"]
        limit, driver = (part.strip() for part in run(query).splitlines()[0].split(","))
        facts.power, facts.driver = limit, facts.driver or driver


def _cuda(facts: Facts, run: Run) -> None:
    """What the driver runs, where no toolkit is installed: the libraries bring their own."""
    if not facts.cuda and not facts.l4t:
        found = re.search(r"CUDA Version: ([\d.]+)", run(["nvidia-smi"]))
        facts.cuda = found.group(1) if found else ""
