"""Each kernel beside everything else that can do its job, and beside what the memory allows.

python benchmarks/kernels.py
python benchmarks/kernels.py --bundle bundles/tiny    # smooth logits from a model
python benchmarks/kernels.py --device cuda
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import benchmarks  # noqa: F401  # before anything that imports `kernels`, see there
from runtime.cli import console, one_line_errors
from runtime.errors import InputError

if TYPE_CHECKING:  # --help waits for no library
    from benchmarks.kernel_record import KernelRecord, Measured

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
LEAST_ROUNDS, MOST_ROUNDS = 3, 25


class Device(str, Enum):
    cpu = "cpu"
    cuda = "cuda"


@app.command()
def main(
    device: Annotated[Device, typer.Option(help="Where the kernels run.")] = Device.cpu,
    bundle: Annotated[Path | None, typer.Option(help="Bundle that makes the smooth logits (default: random).")] = None,
    only: Annotated[str, typer.Option(help="Cases whose kernel or input holds this text.")] = "",
    seconds: Annotated[float, typer.Option(help="For each case, where three rounds need less.", min=0)] = 5.0,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("benchmarks/results"),
) -> None:
    """Times every kernel; prints a table, writes kernels.json with every timing and a roofline picture."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before any library reads it
    with one_line_errors():
        from benchmarks.kernel_record import sentences, table

        record = measure(device, bundle, only, seconds)
        console.print(table(record))
        for line in (*sentences(record.cases), *(f"note: {remark}" for remark in record.remarks)):
            console.print(line, soft_wrap=True)
        for path in write(record, out, "kernels" if device is Device.cpu else f"kernels-{record.device}"):
            console.print(f"wrote {path}", soft_wrap=True)


def measure(device: Device, bundle: Path | None, only: str, seconds: float) -> KernelRecord:
    import kernels
    from benchmarks.kernel_record import KernelRecord
    from benchmarks.machine import load_average, this_machine, versions
    from benchmarks.record import busy, relative_command

    rig = cpu_rig() if device is Device.cpu else cuda_rig()
    machine, before = this_machine(None if device is Device.cpu else rig.name), load_average()
    logits, source = (model_logits(bundle), bundle.name) if bundle else (rig.hills, "smooth")
    cases = [
        run_case(case, rig, seconds) for case in rig.cases(logits, source) if only in f"{case.kernel}: {case.inputs}"
    ]
    if not cases:
        raise InputError(f"--only is {only!r}; no case holds that")
    return KernelRecord(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=relative_command("benchmarks/kernels.py", sys.argv[1:]),
        device=rig.name,
        machine=machine,
        versions=versions(),
        build=kernels.build_info(),
        load_average=(before, load_average()),
        logits=source,
        peak=rig.peak(),
        remarks=tuple(busy(before, machine.cores)),
        cases=tuple(cases),
    )


class Rig:
    """Where a run is timed: the cases of a device, its clock, its bandwidth and its peak."""

    def __init__(self, name: str, module: Any, clock: Callable[[Callable[[], Any]], float], hills: Any) -> None:
        self.name, self.cases, self.clock, self.hills = name, module.cases, clock, hills
        self.moved, self.bandwidth_run = module.triad()

    def peak(self) -> float:
        """GFLOP/s of a float32 matrix product."""
        import torch

        a = torch.ones(1024, 1024, device="cpu" if self.name == "cpu" else "cuda")
        return 2 * 1024**3 / min(self.clock(lambda: a @ a) for _ in range(5)) / 1e6


def cpu_rig() -> Rig:
    from benchmarks import kernel_cases

    kernel_cases.prepare()

    def clock(run: Callable[[], Any]) -> float:
        start = time.thread_time()
        run()
        return (time.thread_time() - start) * 1e3

    return Rig("cpu", kernel_cases, clock, kernel_cases.hills)


def cuda_rig() -> Rig:
    """Raises InputError: no GPU, or nothing to drive it with."""
    from benchmarks.kernel_cases import hills
    from kernels import cuda_api

    if not cuda_api.available():
        raise InputError("--device is cuda; there is no GPU here, or the kernels were built without CUDA")
    import torch

    if not torch.cuda.is_available():
        raise InputError("--device is cuda; this torch has no CUDA: install the build for your driver")
    from benchmarks import kernel_cases_cuda

    return Rig(torch.cuda.get_device_name(), kernel_cases_cuda, kernel_cases_cuda.clock, hills)


def run_case(case: Any, rig: Rig, seconds: float) -> Measured:
    """Rounds of all contestants in turn, the bandwidth among them, until the time is up."""
    import numpy as np

    from benchmarks.kernel_record import measured

    console.print(f"{case.kernel}: {case.inputs}")
    runs = {**case.contestants, "bandwidth": rig.bandwidth_run}
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    calls = {name: repeats(lambda run=run: rig.clock(lambda: run(0))) for name, run in runs.items()}
    begun, turn, order = time.perf_counter(), 0, list(runs)
    while turn < LEAST_ROUNDS or (turn < MOST_ROUNDS and time.perf_counter() - begun < seconds):
        for name in order:
            numbers = range(turn * calls[name], (turn + 1) * calls[name])
            times = [rig.clock(lambda run=runs[name], i=i: run(i)) for i in numbers]
            rounds[name].append(float(np.median(times)))
        order.reverse()
        turn += 1
    bandwidth = rig.moved / np.median(rounds.pop("bandwidth")) / 1e6
    return measured(case, rounds, float(bandwidth))


def repeats(timed: Callable[[], float]) -> int:
    """Calls in a round: short ones more often, so that one of them does not stand for all. The first call warms up."""
    timed()
    return 5 if timed() < 10 else 1


def model_logits(bundle: Path) -> Callable[[int], Any]:
    """What a bundle's decoder gives for K made-up classes on the default photo.

    Raises:
        BundleError: there is none.
    """
    import kernels
    from benchmarks.latency import class_names
    from benchmarks.photos import read
    from runtime import Segmenter
    from runtime.bundle import Bundle

    vocabulary = Bundle.open(bundle).manifest.vocabulary
    segmenter, photo = Segmenter.load(bundle), read(None)[0]

    def logits(classes: int) -> Any:
        segmenter.set_classes(list(class_names(str(classes), vocabulary)))
        real, seen = kernels.upsample_argmax, []

        def spy(logits: Any, *arguments: Any, **options: Any) -> Any:
            seen.append(logits)
            return real(logits, *arguments, **options)

        kernels.upsample_argmax = spy
        try:
            segmenter(photo)
        finally:
            kernels.upsample_argmax = real
        return seen[0]

    return logits


def write(record: KernelRecord, out: Path, stem: str) -> Iterable[Path]:
    """The .json and the picture. Raises OutputError: the folder cannot be written."""
    from benchmarks.machine import slug
    from benchmarks.result_files import save_results

    def roofline(path: Path) -> None:
        from benchmarks.roofline import save_roofline

        save_roofline(path, record)

    return save_results(record, out / record.machine.slug, slug(stem), {".png": roofline})


if __name__ == "__main__":
    app()
