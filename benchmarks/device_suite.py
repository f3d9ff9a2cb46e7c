"""Everything that only a GPU can say, in one command; nothing of it needs a network.

python benchmarks/device_suite.py
python benchmarks/device_suite.py --quick
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.box import SIMPLE
from rich.table import Table

from runtime.cli import console, one_line_errors
from runtime.errors import EngineError

ROOT = Path(__file__).parents[1]
TINY, VITL = Path("bundles/tiny-fp16"), Path("bundles/vitl-random")
GPU_TESTS = ("tests/kernels/test_cuda.py", "tests/kernels/test_cuda_results.py")
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx", "onnxruntime-cuda": "onnxruntime"}
TAIL = 3000  # characters of a step's output that are kept

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Step:
    """One command. It runs whatever became of the others; `lacks` says why it cannot, "" if it can.

    Attributes:
        limit: Seconds after which it is ended.
        whole: Left out by --quick.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    lacks: Callable[[], str] = lambda: ""
    whole: bool = False


class Outcome(BaseModel):
    step: str
    result: str  # "ok", "failed", "too long", or why it did not run
    seconds: float
    output: str


class Suite(BaseModel):
    date: str
    gpu: str
    quick: bool
    outcomes: tuple[Outcome, ...]


@app.command()
def main(
    quick: Annotated[bool, typer.Option("--quick", help="Without the full-size model; under three minutes.")] = False,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("benchmarks/results"),
) -> None:
    """Builds the CUDA kernels, tests them, builds engines behind the parity gate, measures; 1 if a step failed."""
    with one_line_errors():
        from benchmarks.machine import slug

        gpu, outcomes = gpu_name(), []
        for step in steps(out):
            if not (quick and step.whole):
                console.print(f"{step.name} ...")
                outcomes.append(run(step))
        suite = Suite(
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            gpu=gpu,
            quick=quick,
            outcomes=tuple(outcomes),
        )
        path = out / slug(gpu) / "suite.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(suite.model_dump_json(indent=1) + "\n", encoding="utf-8")
        console.print(table(outcomes))
        console.print(f"wrote {path}", soft_wrap=True)
        raise typer.Exit(int(any(outcome.result in ("failed", "too long") for outcome in outcomes)))


def steps(out: Path) -> Iterator[Step]:
    """In the order in which they make each other possible."""
    python = sys.executable
    yield Step("what is here", (python, "-m", "runtime", "doctor"), 60)
    install = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--editable", ".")
    yield Step("CUDA kernels", (python, *install), 240, lambda: lacks_program("nvcc"))
    yield Step("GPU tests", (python, "-m", "pytest", "-q", *GPU_TESTS), 240, lambda: lacks_module("pytest"))
    memcheck = ("compute-sanitizer", "--error-exitcode", "1", python, "-m", "pytest", "-q", "-k", "gpu", GPU_TESTS[1])
    yield Step("GPU tests under memcheck", memcheck, 300, lambda: lacks_program("compute-sanitizer"), whole=True)
    kernels = ("benchmarks/kernels.py", "--device", "cuda", "--seconds", "1", "--out", str(out))
    yield Step("kernels against the bandwidth", (python, *kernels), 180, lambda: lacks_module("cupy"))
    export = ("export/build_engines.py", "--engine", "fp16", "--out", str(TINY))
    yield Step("bundle tiny", (python, *export), 240, lambda: lacks_export(TINY))
    full = ("--preset", "vitl", "--random-weights", "--engine", "fp16", "--out", str(VITL))
    yield Step("bundle vitl", (python, export[0], *full), 600, lambda: lacks_export(VITL), whole=True)
    for bundle in (TINY, VITL):
        for backend, module in LIBRARIES.items():
            yield from measured(backend, module, bundle, out)


def measured(backend: str, module: str, bundle: Path, out: Path) -> Iterator[Step]:
    """Engines behind the parity gate, then frames."""

    def lacks() -> str:
        return lacks_module(module) or ("" if (ROOT / bundle / "manifest.json").is_file() else f"no {bundle}")

    whole = bundle is VITL
    if backend != "onnxruntime-cuda":  # which runs the graphs as they are
        build = (sys.executable, "-m", "runtime", "build", str(bundle), "--backend", backend)
        yield Step(f"{bundle.name}: {backend} engines", build, 300, lacks, whole)
    latency = ("benchmarks/latency.py", "--engine", "fp16", "--backend", backend, "--bundle", str(bundle))
    yield Step(f"{bundle.name}: {backend} frames", (sys.executable, *latency, "--out", str(out)), 240, lacks, whole)


def lacks_program(name: str) -> str:
    return "" if shutil.which(name) else f"no {name}"


def lacks_module(name: str) -> str:
    return "" if importlib.util.find_spec(name) else f"no Python module {name}"


def lacks_export(bundle: Path) -> str:
    return f"{bundle} is there" if (ROOT / bundle / "manifest.json").is_file() else lacks_module("torch")


def run(step: Step) -> Outcome:
    if reason := step.lacks():
        return Outcome(step=step.name, result=reason, seconds=0, output="")
    start = time.perf_counter()
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    with subprocess.Popen(step.command, cwd=ROOT, env=environment, start_new_session=True, **options) as process:
        try:
            output, _ = process.communicate(timeout=step.limit)
            result = "ok" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # with all that it has started
            output, result = process.communicate()[0], "too long"
        except BaseException:
            os.killpg(process.pid, 9)
            raise
    return Outcome(step=step.name, result=result, seconds=time.perf_counter() - start, output=output[-TAIL:])


def gpu_name() -> str:
    from runtime.gpu import find_gpu

    gpu = find_gpu()
    if gpu is None:
        raise EngineError("no NVIDIA GPU was found here, which this suite is for; python -m runtime doctor says why")
    return gpu.name


def table(outcomes: list[Outcome]) -> Table:
    found = Table("step", "result", "s", "last line", box=SIMPLE)
    styles = {"ok": "green", "failed": "red", "too long": "red"}
    for outcome in outcomes:
        last = next((line for line in reversed(outcome.output.splitlines()) if line.strip()), "")
        found.add_row(
            outcome.step,
            outcome.result,
            f"{outcome.seconds:.0f}",
            last[:80],
            style=styles.get(outcome.result, "yellow"),
        )
    return found


if __name__ == "__main__":
    app()
