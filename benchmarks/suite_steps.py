"""What the device suite does, in the order in which the steps make each other possible, and what each of them lacks."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import slug
from runtime.gpu import Gpu

ROOT = Path(__file__).parents[1]
TINY, VITL = Path("bundles/tiny-fp16"), Path("bundles/vitl-random")
GPU_TESTS = "tests/kernels/test_cuda_results.py"
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
BACKENDS = (*MODULES, "onnxruntime-cuda")
PYTHON = sys.executable


@dataclass(frozen=True)
class Step:
    """One command. It runs whatever became of the others; `lacks` says why it cannot, "" if it can.

    Attributes:
        limit: Seconds after which it is ended.
        leaves: Seconds of the suite's time that it may not use: steps that need its result come after it.
        advice: What to do where it was ended.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    lacks: Callable[[], str] = lambda: ""
    leaves: float = 0.0
    advice: str = ""


def steps(out: Path, gpu: Gpu, quick: bool) -> Iterator[Step]:
    """Quick: without the full-size model, the sanitizers and torch.compile."""
    yield Step("what is here", (PYTHON, "-m", "runtime", "doctor"), 60)
    yield from kernel_steps(out, gpu)
    yield tiny_bundle()
    first = next((backend for backend in BACKENDS if not lacks_backend(backend)), "")
    for backend in BACKENDS:
        yield from measured(backend, TINY, out, compiles=not quick and backend == first)
    yield scored(out, gpu)
    if quick:
        return
    yield vitl_bundle()
    for backend in BACKENDS:
        yield from measured(backend, VITL, out, compiles=backend == first)
    for tool in ("memcheck", "racecheck", "initcheck"):
        yield sanitized(tool)


def kernel_steps(out: Path, gpu: Gpu) -> Iterator[Step]:
    """For this GPU's architecture alone: all of them take minutes."""
    architecture = gpu.compute_capability.replace(".", "")
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    options += ("-C", "cmake.define.DINOV3SEG_CUDA=ON", "-C", f"cmake.define.CMAKE_CUDA_ARCHITECTURES={architecture}")
    yield Step("CUDA kernels", (PYTHON, "-m", "pip", "install", *options, "--editable", "."), 240, lacks_compiler)
    yield Step("GPU tests", pytest_on_gpu("gpu"), 120, lambda: lacks_module("pytest") or lacks_kernels())
    kernels = ("benchmarks/kernels.py", "--device", "cuda", "--seconds", "1", "--out", str(out))
    yield Step("kernels against the bandwidth", (PYTHON, *kernels), 120, lambda: lacks_torch() or lacks_kernels())


def pytest_on_gpu(tests: str) -> tuple[str, ...]:
    return (PYTHON, "-m", "pytest", "-q", "-k", tests, GPU_TESTS)


def sanitized(tool: str) -> Step:
    """The slow ones leave the random cases out."""
    tests = "gpu" if tool == "memcheck" else "gpu and not anything"
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *pytest_on_gpu(tests))
    return Step(f"GPU tests under {tool}", command, 180, lambda: lacks_program("compute-sanitizer") or lacks_kernels())


def tiny_bundle() -> Step:
    """With its own weights; where ONNX Runtime has CUDA, the gate compares that too."""
    backends = ["onnxruntime"] if lacks_backend("onnxruntime-cuda") else ["onnxruntime", "onnxruntime-cuda"]
    chosen = [word for backend in backends for word in ("--backend", backend)]
    export = ("export/build_engines.py", "--engine", "fp16", *chosen, "--out", str(TINY))
    return Step("bundle tiny", (PYTHON, *export), 240, lambda: lacks_export(TINY))


def vitl_bundle() -> Step:
    """Its export is work for a CPU, half an hour on two cores, and the bundle of any machine will do."""
    export = ("export/build_engines.py", "--preset", "vitl", "--random-weights", "--engine", "fp16")
    command = (*export, "--out", VITL.as_posix())
    advice = f"on any machine: {shlex.join(('python', *command))}; copy {VITL} here, or give more --minutes"
    return Step("bundle vitl", (PYTHON, *command), 3600, lambda: lacks_export(VITL), leaves=200, advice=advice)


def measured(backend: str, bundle: Path, out: Path, compiles: bool) -> Iterator[Step]:
    """Engines behind the parity gate, then frames beside torch's."""

    def lacks() -> str:
        return lacks_backend(backend) or ("" if is_bundle(bundle) else f"no {bundle}")

    if backend in MODULES:  # ONNX Runtime runs the graphs as they are
        build = (PYTHON, "-m", "runtime", "build", str(bundle), "--backend", backend)
        yield Step(f"{bundle.name}: {backend} engines", build, 240, lacks)
    latency = ("benchmarks/latency.py", "--engine", "fp16", "--backend", backend, "--bundle", str(bundle))
    options = (*([] if compiles else ["--no-compile"]), "--out", str(out))
    yield Step(f"{bundle.name}: {backend} frames", (PYTHON, *latency, *options), 240, lacks)


def scored(out: Path, gpu: Gpu) -> Step:
    """Scenes with ground truth, in every engine that runs here: the one thing that no shape and no clock can say."""
    options = ("--bundle", str(TINY), "--backend", "all", "--scenes", "16", "--no-torch")
    command = (PYTHON, "benchmarks/accuracy.py", *options, "--out", str(out / slug(gpu.name)))
    return Step(f"{TINY.name}: accuracy", command, 120, lambda: "" if is_bundle(TINY) else f"no {TINY}")


def is_bundle(folder: Path) -> bool:
    return (ROOT / folder / "manifest.json").is_file()


def lacks_program(name: str) -> str:
    return "" if shutil.which(name) else f"no {name}"


def lacks_module(name: str) -> str:
    return "" if importlib.util.find_spec(name) else f"no Python module {name}"


def lacks_compiler() -> str:
    """Without a network, pip builds with what is installed."""
    if not lacks_kernels():
        return "they are built"
    return lacks_program("nvcc") or lacks_module("scikit_build_core") or lacks_module("nanobind")


def lacks_kernels() -> str:
    """Asked in a process of its own: they may have been built a moment ago."""
    code = "from kernels import cuda_api; raise SystemExit(not cuda_api.available())"
    return "" if subprocess.run([PYTHON, "-c", code], cwd=ROOT, capture_output=True).returncode == 0 else "no kernels"


def lacks_torch() -> str:
    from benchmarks.gpu_roofs import why_no_gpu_torch

    return why_no_gpu_torch()


def lacks_backend(name: str) -> str:
    if name in MODULES:
        return lacks_module(MODULES[name])
    import onnxruntime

    return "" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "this ONNX Runtime has no CUDA"


def lacks_export(bundle: Path) -> str:
    return f"{bundle} is there" if is_bundle(bundle) else lacks_module("torch") or lacks_module("onnx")
