"""How well a bundle segments: mIoU, outlines and agreement with torch, on Tabletop scenes or on a folder of yours.

python benchmarks/accuracy.py --bundle bundles/tiny --backend all
python benchmarks/accuracy.py --bundle bundles/tiny --views both --views crops --views full
python benchmarks/accuracy.py --bundle bundles/tiny --engine fp32 --no-torch --shortlist 1 --shortlist 3
python benchmarks/accuracy.py --bundle bundles/vitl --data ade20k/ --engine fp16
"""

from __future__ import annotations

import importlib.util
import os
import sys
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

import benchmarks  # noqa: F401  # before anything that imports `kernels`, see there
from runtime.cli import console, one_line_errors
from runtime.errors import InputError

if TYPE_CHECKING:  # --help waits for no library
    from benchmarks.accuracy_record import AccuracyRecord
    from benchmarks.accuracy_run import Findings
    from benchmarks.datasets import Dataset
    from runtime.bundle import Bundle
    from runtime.engines import Backend
    from runtime.manifest import Precision
    from runtime.pipeline import Views

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SCENES = 64


class ViewChoice(str, Enum):
    both = "both"
    crops = "crops"
    full = "full"


@app.command()
def main(
    bundle: Annotated[
        list[Path],
        typer.Option(
            help="Bundle folder; several compare other crop geometries, or models built with and without refinement."
        ),
    ] = [Path("bundles/tiny")],  # noqa: B006 (typer's way)
    scenes: Annotated[
        int | None, typer.Option(help=f"How many pictures (default: {SCENES} scenes; all of --data).", min=1)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Tabletop split: train, val, test (default) or hard.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the scenes in pixels (default: 320).", min=96)] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder instead of scenes: images/, labels/ (.png: line in classes.txt from 0; 255, in 16 bits 65535: "
            "ignore), classes.txt (an empty line: ignore that label)."
        ),
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16 or bf16; repeatable (default: every precision of the bundle).")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime, onnxruntime-cuda, openvino, tensorrt, tensorrt-rtx, auto or all (whatever can run the "
            "bundle here); repeatable (default: auto)."
        ),
    ] = None,
    views: Annotated[
        list[ViewChoice] | None,
        typer.Option(help="both: crops and whole image merged (LGA on); crops or full: one alone; repeatable."),
    ] = None,
    shortlist: Annotated[
        list[int] | None,
        typer.Option(
            help="Measure too what it costs and gains to refine only classes that are among this many with the largest "
            "cosine at some pixel; repeatable.",
            min=1,
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads, torch's too (default: every core).", min=1)] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoints that the bundle was built from, for torch.")
    ] = None,
    no_torch: Annotated[bool, typer.Option("--no-torch", help="The first engine is the reference.")] = False,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("benchmarks/results"),
) -> None:
    """Scores engines and torch on labelled pictures; prints a table, writes a .json and two pictures."""
    with one_line_errors():
        from benchmarks.contestants import why_no_torch
        from benchmarks.latency import check_writable
        from benchmarks.machine import usable_cores
        from runtime.bundle import Bundle

        used = threads or usable_cores()
        os.environ["OMP_NUM_THREADS"] = str(used)  # for the kernels
        opened = [Bundle.open(one) for one in bundle]
        check_names(opened)
        without = [why_no_torch(one.manifest, weights, no_torch) for one in opened]
        sides = [engine_runs(one, backend or ["auto"], engine) for one in opened]
        check_writable(out)
        dataset = open_data(data, scenes, split, size)
        looks: list[Views] = [choice.value for choice in dict.fromkeys(views or [ViewChoice.both])]
        records = []
        for one, runs, reason in zip(opened, sides, without, strict=True):
            record, findings = measure(one, dataset, runs, looks, shortlist or [], reason, weights, used)
            print_report(record)
            records.append(record)
            for path in write(record, findings, dataset, one.root.resolve().name, out):
                console.print(f"wrote {path}", soft_wrap=True)
        if len(records) > 1:
            print_comparison(records)


def check_names(bundles: list[Bundle]) -> None:
    """Results are named after the bundle's folder."""
    names = [bundle.root.resolve().name for bundle in bundles]
    if len(set(names)) < len(names):
        raise InputError("--bundle: two folders have the same name, which names their results; rename one of them")


def engine_runs(bundle: Bundle, backends: list[str], precisions: list[str] | None) -> list[tuple[Backend, Precision]]:
    """Every backend in every precision, each once.

    Raises:
        EngineError: a library is not installed.
        InputError: a combination that cannot be run, or a precision that the bundle lacks.
    """
    from runtime.engines import choose_backend, graph_precision

    known = bundle.manifest.precisions
    names = [name for given in backends for name in libraries(bundle, given)]
    runs = [choose_backend(name, asked) for name in names for asked in precisions or precisions_of(bundle, name)]
    for _, precision in runs:
        if graph_precision(precision) not in known:
            raise InputError(
                f"--engine {precision}: {bundle.root} has graphs in {', '.join(known)} only; "
                f"build it with --engine {precision}"
            )
    return list(dict.fromkeys(runs))


def libraries(bundle: Bundle, backend: str) -> list[str]:
    """What "auto" and "all" mean here: engines that were built for the GPU at hand, where there are any."""
    from runtime.engines import BUILT, CPU_BACKENDS, best_backend

    if backend not in ("auto", "all"):
        return [backend]
    best, _ = best_backend(bundle, None)
    built: list[str] = [best] if best in BUILT else []
    if backend == "auto":
        return built or ["auto"]
    return [name for name in CPU_BACKENDS if importlib.util.find_spec(name)] + built


def precisions_of(bundle: Bundle, backend: str) -> list[Precision]:
    """The bundle's, as far as the backend runs them; bf16 is a mode of OpenVINO, and engines are built for some."""
    from runtime.engine_cache import graph_hash
    from runtime.engines import BUILT
    from runtime.manifest import Precision

    known = [precision for precision in get_args(Precision) if precision in bundle.manifest.precisions]
    if backend == "openvino":
        return list(dict.fromkeys([*known, "bf16"]))
    if backend == "onnxruntime":
        return [precision for precision in known if precision != "bf16"]
    if backend not in BUILT:
        return known
    built = {(one.key.stage, one.key.graph) for one in bundle.manifest.engines if one.key.backend == backend}
    stages = bundle.manifest.stages
    complete = [p for p in known if all((stage.name, graph_hash(bundle, stage, p)) in built for stage in stages)]
    return complete or known  # opening says what is missing


def open_data(data: Path | None, scenes: int | None, split: str | None, size: int | None) -> Dataset:
    from benchmarks.datasets import Folder, Tabletop

    if data is None:
        return Tabletop(split or "test", scenes or SCENES, size or 320)
    if split is not None or size is not None:
        raise InputError("--split and --size choose Tabletop scenes; leave them out with --data")
    return Folder(data, scenes)


def measure(
    bundle: Bundle,
    dataset: Dataset,
    sides: list[tuple[Backend, Precision]],
    views: list[Views],
    shortlists: list[int],
    without_torch: str | None,
    weights: Path | None,
    threads: int,
) -> tuple[AccuracyRecord, Findings]:
    from benchmarks.accuracy_record import AccuracyRecord, caveats
    from benchmarks.accuracy_run import evaluate, open_contestants
    from benchmarks.machine import load_average, this_machine, versions
    from benchmarks.record import BundleIdentity, busy, relative_command

    before, manifest, machine = load_average(), bundle.manifest, this_machine()
    contestants = open_contestants(
        bundle.root, sides, views, without_torch is None, weights, threads, dataset.classes, shortlists
    )
    console.print(f"{', '.join(one.title for one in contestants)}: {dataset.identity.images} pictures", soft_wrap=True)
    findings = evaluate(contestants, dataset)
    record = AccuracyRecord(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=relative_command("benchmarks/accuracy.py", sys.argv[1:]),
        machine=machine,
        versions=versions(),
        load_average=(before, load_average()),
        threads=threads,
        bundle=BundleIdentity.of(bundle),
        geometry=manifest.pipeline.geometry,
        refinement=manifest.pipeline.refinement,
        data=dataset.identity,
        small_objects=findings.small_objects if dataset.tabletop else None,
        reference=contestants[0].name,
        without_torch=without_torch,
        remarks=tuple(
            caveats(findings.scores, manifest.random_weights) + (busy(before, machine.cores) if shortlists else [])
        ),
        scores=tuple(findings.scores),
    )
    return record, findings


def print_report(record: AccuracyRecord) -> None:
    from benchmarks import accuracy_record

    accuracy_record.print_report(console, record)


def print_comparison(records: list[AccuracyRecord]) -> None:
    from benchmarks import accuracy_record

    console.print(accuracy_record.comparison_table(records))


def write(record: AccuracyRecord, findings: Findings, dataset: Dataset, name: str, out: Path) -> list[Path]:
    """The .json and, where matplotlib is installed, two pictures. Raises OutputError: the folder cannot be written."""
    from benchmarks.accuracy_record import file_stem
    from benchmarks.result_files import save_results

    stem = file_stem(name, record.data, any(one.shortlist for one in record.scores))
    note = " ".join(record.remarks)

    def confusion(path: Path) -> None:
        from benchmarks.confusion_chart import save_confusion

        save_confusion(path, findings.confusion, dataset, f"{record.title}\n{findings.titles[0]}", note)

    def sheet(path: Path) -> None:
        from benchmarks.sheets import save_sheet

        save_sheet(path, findings.examples, dataset.classes, findings.titles, f"{record.title}\n{note}".strip())

    pictures = {"-confusion.png": confusion, "-sheet.png": sheet}
    return save_results(record, out / record.machine.slug, stem, pictures)


if __name__ == "__main__":
    app()
