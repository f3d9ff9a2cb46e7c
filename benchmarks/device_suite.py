"""Everything that only a GPU can say, in one command; nothing of it needs a network.

python benchmarks/device_suite.py
python benchmarks/device_suite.py --quick
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel
from rich.box import SIMPLE
from rich.table import Table

import benchmarks  # noqa: F401  # before anything that imports `kernels`, see there
from benchmarks.gpu_state import GpuState, gpu_state
from benchmarks.machine import slug
from benchmarks.suite_steps import ROOT, Step, steps
from runtime.cli import console, one_line_errors
from runtime.errors import EngineError

if TYPE_CHECKING:
    from runtime.gpu import Gpu

TAIL = 3000  # characters of a step's output that are kept
MINUTES, QUICK_MINUTES = 10.0, 3.0
GRACE = 5.0  # seconds in which a step that is ended may tidy up
LEAST = 5.0  # seconds that are worth a start

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Outcome(BaseModel):
    """`result`: "ok", "failed", "too long", "no time left", or why it did not run."""

    step: str
    result: str
    seconds: float
    output: str
    advice: str = ""


class Suite(BaseModel):
    date: str
    gpu: GpuState
    quick: bool
    minutes: float
    outcomes: tuple[Outcome, ...]


@app.command()
def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Without the full-size model, the sanitizers and torch.compile.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(help="For all steps together (default: 10, or 3 with --quick).", min=0.1)
    ] = None,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("benchmarks/results"),
) -> None:
    """Builds the CUDA kernels, tests them, builds engines behind the parity gate, measures; 1 if a step failed."""
    with one_line_errors():
        gpu, budget = this_gpu(), minutes or (QUICK_MINUTES if quick else MINUTES)
        outcomes = run_all(out.absolute(), gpu, quick, time.monotonic() + 60 * budget)
        suite = Suite(
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            gpu=gpu_state(gpu),
            quick=quick,
            minutes=budget,
            outcomes=tuple(outcomes),
        )
        path = out / slug(gpu.name) / "suite.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(suite.model_dump_json(indent=1) + "\n", encoding="utf-8")
        console.print(table(outcomes))
        for outcome in outcomes:
            if outcome.advice:
                console.print(f"{outcome.step}: {outcome.advice}", style="yellow", highlight=False, soft_wrap=True)
        console.print(f"wrote {path}", soft_wrap=True)
        raise typer.Exit(int(any(outcome.result in ("failed", "too long") for outcome in outcomes)))


def this_gpu() -> Gpu:
    """Raises EngineError: there is none."""
    from runtime.gpu import find_gpu

    gpu = find_gpu()
    if gpu is None:
        raise EngineError("no NVIDIA GPU was found here, which this suite is for; python -m runtime doctor says why")
    return gpu


def run_all(out: Path, gpu: Gpu, quick: bool, deadline: float) -> list[Outcome]:
    """One after the other: what is measured must be alone on the machine."""
    outcomes = []
    for step in steps(out, gpu, quick):
        console.print(f"{step.name} ...")
        outcomes.append(run(step, deadline - time.monotonic() - GRACE - step.leaves))
    return outcomes


def run(step: Step, left: float) -> Outcome:
    """`left`: seconds of the suite's time that it may take."""
    if reason := step.lacks():
        return Outcome(step=step.name, result=reason, seconds=0, output="")
    if left < LEAST:
        return Outcome(step=step.name, result="no time left", seconds=0, output="", advice=step.advice)
    start = time.perf_counter()
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    with subprocess.Popen(step.command, cwd=ROOT, env=environment, start_new_session=True, **options) as process:
        try:
            output, _ = process.communicate(timeout=min(step.limit, left))
            result = "ok" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            output, result = end(process), "too long"
        except BaseException:
            end(process)
            raise
    advice = step.advice if result == "too long" else ""
    seconds = time.perf_counter() - start
    return Outcome(step=step.name, result=result, seconds=seconds, output=output[-TAIL:], advice=advice)


def end(process: subprocess.Popen[str]) -> str:
    """With all that it has started: first asked, as by Ctrl-C, so that nothing unfinished stays behind; then killed."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        return process.communicate(timeout=GRACE)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


def table(outcomes: Sequence[Outcome]) -> Table:
    found = Table("step", "result", "s", "last line", box=SIMPLE)
    styles = {"ok": "green", "failed": "red", "too long": "red"}
    for outcome in outcomes:
        last = next((line for line in reversed(outcome.output.splitlines()) if line.strip()), "")
        style = styles.get(outcome.result, "yellow")
        found.add_row(outcome.step, outcome.result, f"{outcome.seconds:.0f}", last[:80], style=style)
    return found


if __name__ == "__main__":
    app()
