"""How long a frame takes, stage by stage, beside torch on the same weights, photo and classes.

python benchmarks/latency.py --bundle bundles/tiny
python benchmarks/latency.py --bundle bundles/vitl --weights checkpoints/ --classes ade150.json
python benchmarks/latency.py --bundle bundles/vitl --backend tensorrt --engine fp16    # on its GPU
"""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import benchmarks  # noqa: F401  # before anything that imports `kernels`, see there
from runtime.cli import console, one_line_errors
from runtime.errors import EngineError, InputError, OutputError

if TYPE_CHECKING:  # --help waits for no library
    from benchmarks.alone import Alone
    from benchmarks.contestants import Name, Task
    from benchmarks.record import Record
    from benchmarks.stage_profile import StageProfile
    from runtime.bundle import Bundle

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    engine: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")] = Path("bundles/tiny"),
    backend: Annotated[
        str, typer.Option(help="onnxruntime, openvino, tensorrt, tensorrt-rtx, onnxruntime-cuda or auto.")
    ] = "auto",
    photo: Annotated[
        Path | None, typer.Option(help="Photo file (default: scikit-image's coffee, or a generated one).")
    ] = None,
    classes: Annotated[str, typer.Option(help='How many, or "a, b, c", or a .txt or .json file.')] = "20",
    frames: Annotated[int, typer.Option(help="Warm frames that count.", min=1)] = 20,
    warmup: Annotated[int, typer.Option(help="Frames before them that do not.", min=0)] = 3,
    threads: Annotated[int | None, typer.Option(help="CPU threads, torch's too (default: every core).", min=1)] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoints that the bundle was built from, for torch.")
    ] = None,
    no_torch: Annotated[bool, typer.Option("--no-torch", help="Measure the engine only.")] = False,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="On a GPU, leave torch.compile out, which compiles for minutes.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("benchmarks/results"),
) -> None:
    """Times a bundle against torch; prints tables, writes a .json with every timing and pictures.

    On a CPU torch runs eagerly in fp32; on a GPU also in fp16, eagerly and compiled.
    """
    with one_line_errors():
        from benchmarks.contestants import Task, contestant_names, why_no_torch
        from benchmarks.gpu_roofs import why_no_gpu_torch
        from benchmarks.machine import usable_cores
        from benchmarks.photos import photo_file
        from benchmarks.tables import print_report
        from runtime.bundle import Bundle
        from runtime.engines import backend_for

        opened = Bundle.open(bundle)
        library, precision = backend_for(opened, backend, engine)
        without_torch = why_no_torch(opened.manifest, weights, no_torch)
        check_writable(out)
        with photo_file(photo) as (pixels, photo_name):
            task = Task(
                bundle=bundle,
                backend=library,
                precision=precision,
                threads=threads or usable_cores(),
                classes=class_names(classes, opened.manifest.vocabulary),
                weights=weights,
                photo=pixels,
                warmup=warmup,
                frames=frames,
            )
            if task.on_gpu and without_torch is None:
                without_torch = why_no_gpu_torch() or None
            names = contestant_names(task, without_torch, not no_compile)
            record = measure(opened, task, names, without_torch, photo_name)
        print_report(console, record)
        for path in write(record, out):
            console.print(f"wrote {path}", soft_wrap=True)


def class_names(classes: str, vocabulary: tuple[str, ...]) -> tuple[str, ...]:
    """A number makes names up: the time depends on how many there are, not on what they are.

    A model with a vocabulary knows no other words: its names, then two at a time.
    """
    from runtime.vocab import read_classes

    if not classes.strip().isdecimal():
        return tuple(read_classes(classes))
    if not 1 <= int(classes) <= 1000:
        raise InputError(f"--classes is {classes}; expected 1 to 1000, or names")
    made_up = (f"object {index}" for index in range(int(classes)))
    known = chain(vocabulary, (f"{a} {b}" for a in vocabulary for b in vocabulary))
    return tuple(islice(known if vocabulary else made_up, int(classes)))


def measure(bundle: Bundle, task: Task, names: list[Name], without_torch: str | None, photo_name: str) -> Record:
    """Each contestant alone for start-up and memory, all of them in turn for the warm timings; on a GPU, the stages."""
    os.environ["OMP_NUM_THREADS"] = str(task.threads)  # for the kernels, here and in the processes started below
    from benchmarks.machine import load_average, this_machine, versions
    from benchmarks.measure import measure_interleaved, ratios, spreads
    from benchmarks.record import (
        GPU_METHOD,
        METHOD,
        BundleIdentity,
        Record,
        Workload,
        busy,
        caveats,
        photo_size,
        relative_command,
    )

    before = load_average()
    alone, failed = each_alone(names, task)
    names = [one.contestant for one in alone]
    console.print(f"{' and '.join(names)} in turn: {task.warmup} + {task.frames} frames")
    found = measure_interleaved(names, task)
    profile = stages_on_gpu(task)
    manifest, machine = bundle.manifest, this_machine(None if found.gpu is None else found.gpu.name)
    remarks = caveats(task.precision, found.precision, manifest.random_weights, task.on_gpu)
    return Record(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=relative_command("benchmarks/latency.py", sys.argv[1:]),
        machine=machine,
        versions=versions(),
        load_average=(before, load_average()),
        threads=task.threads,
        backend=task.backend,
        asked_precision=task.precision,
        precision=found.precision,
        bundle=BundleIdentity.of(bundle),
        workload=Workload(
            photo=photo_name,
            photo_size=photo_size(task.photo),
            classes=len(task.classes),
            geometry=manifest.pipeline.geometry,
            warmup=task.warmup,
            frames=task.frames,
        ),
        method=METHOD | GPU_METHOD if task.on_gpu else METHOD,
        without_torch=without_torch,
        agreement=found.agreement,
        torch_agreement=found.torch_agreement,
        gpu=found.gpu,
        profile=profile,
        remarks=tuple(remarks + failed + busy(before, machine.cores)),
        alone=tuple(alone),
        warm={name: spreads(found.frames, name) for name in names},
        ratio=ratios(found.frames),
        frames=found.frames,
    )


def stages_on_gpu(task: Task) -> StageProfile | None:
    if not task.on_gpu:
        return None
    from benchmarks.stage_profile import profile_stages

    console.print("stage by stage")
    return profile_stages(task)


def each_alone(names: list[Name], task: Task) -> tuple[list[Alone], list[str]]:
    """What each measured, and a sentence for each way of torch that failed, as torch.compile does without a compiler.

    Raises:
        Dinov3SegError: the engine failed, or eager torch did.
    """
    from benchmarks.alone import measure_alone

    alone, failed = [], []
    for name in names:
        console.print(f"{name} alone: start-up, first frame, memory")
        try:
            alone.append(measure_alone(name, task))
        except EngineError as error:
            if name in ("engine", "torch"):
                raise
            failed.append(f"{name}: not measured: {error}.")
    return alone, failed


def check_writable(out: Path) -> None:
    """Before minutes of measuring, and without leaving an empty folder behind.

    Raises:
        OutputError: results cannot be written there.
    """
    nearest = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise OutputError(f"cannot write results to {out}: {nearest} is no writable folder; name another with --out")


def write(record: Record, out: Path) -> list[Path]:
    """The .json and, where matplotlib is installed, the pictures: a chart, and a timeline of stages timed on a GPU.

    Raises:
        OutputError: the folder cannot be written.
    """
    from benchmarks.result_files import save_results

    def chart(path: Path) -> None:
        from benchmarks.charts import save_chart

        save_chart(path, record.means(), record.title, record.note)

    def timeline(path: Path) -> None:
        from benchmarks.timeline import save_timeline

        assert record.profile is not None
        save_timeline(path, record.profile.sites, record.title, record.note)

    timed = record.profile is not None and record.profile.sites
    pictures = {".png": chart} | ({"-timeline.png": timeline} if timed else {})
    return save_results(record, out / record.machine.slug, record.stem, pictures)


if __name__ == "__main__":
    app()
