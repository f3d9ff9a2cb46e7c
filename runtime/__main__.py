"""`python -m runtime`: segment photos, folders and videos, and build engines, from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from itertools import tee
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from runtime.cli import console, one_line_errors, show_memory_plans, spinner
from runtime.errors import InputError


class EngineChoice(str, Enum):
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class PrecisionChoice(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Open-vocabulary segmentation from a bundle, without PyTorch."""


@app.command()
def segment(
    source: Annotated[str, typer.Argument(help="Photo, folder of photos, video file, stream URL or camera number.")],
    classes: Annotated[str, typer.Option(help='"a, b, c", or a .txt or .json file.')],
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture, folder or .mp4, as the source.")],
    backend: Annotated[str, typer.Option(help="onnxruntime, openvino, tensorrt ... or auto.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16 (default: the backend's).")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: the library's choice).")] = None,
    legend: Annotated[bool, typer.Option(help="Draw class names into the picture.")] = True,
    shortlist: Annotated[
        int, typer.Option(help="Refine only classes among this many with the largest cosine at some pixel; 0: all.")
    ] = 0,
    reuse_global: Annotated[int, typer.Option(help="Look at the whole image in every n-th frame only.")] = 1,
    crops: Annotated[str, typer.Option(help="all, or changed: look again only at crops that changed.")] = "all",
) -> None:
    """Writes the source with its classes painted over it, and prints the mean time of each stage."""
    loading = {"backend": backend, "precision": precision, "threads": threads, "shortlist": shortlist}
    with one_line_errors():
        timings = run(source, classes, bundle, out, legend, loading, {"reuse_global": reuse_global, "crops": crops})
    console.print(timing_table(timings))


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    backend: Annotated[EngineChoice, typer.Option(help="Library that builds the engines.")] = EngineChoice.tensorrt,
    target: Annotated[
        list[str] | None, typer.Option(help="GPU to build for: host, sm86, jetson-orin ... (default: host).")
    ] = None,
    engine: Annotated[PrecisionChoice, typer.Option(help="Graphs to build from.")] = PrecisionChoice.fp16,
    most_classes: Annotated[int, typer.Option(help="Class lists up to this length.")] = 256,
    unfused_attention: Annotated[
        bool, typer.Option("--unfused-attention", help="Softmax apart and in fp32, for drivers that fuse it wrongly.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Runs with later versions of the library too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Runs on later GPUs too (TensorRT, from Ampere on); slower.")
    ] = False,
    photo: Annotated[Path | None, typer.Option(help="Photo for the parity gate (default: a generated one).")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only print the engines that are there.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Only remove engines that can no longer be loaded.")] = False,
) -> None:
    """Builds the bundle's engines here. Engines that are up to date are kept."""
    from runtime.bundle import Bundle
    from runtime.engine_commands import build_for, prune_bundle, report
    from runtime.probe import generated_photo
    from runtime.video import read_photo

    switches = {
        "unfused-attention": unfused_attention,
        "version-compatible": version_compatible,
        "hardware-compatible": hardware_compatible,
    }
    options = [name for name, wanted in switches.items() if wanted]
    with one_line_errors():
        opened = Bundle.open(bundle)
        if prune:
            prune_bundle(opened)
            return
        if not list_:
            with spinner() as announce:
                image = generated_photo() if photo is None else read_photo(photo)
                opened = build_for(
                    opened, backend.value, target or [], engine.value, options, most_classes, image, announce
                )
        report(opened.manifest.engines, bundle)


@app.command()
def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle to examine too.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs, on standard output.")] = False,
) -> None:
    """Says what is installed here, what of it is known not to work, and what mends it. Exits with 1 if it is broken."""
    from runtime.doctor import diagnose, report
    from runtime.facts import collect

    with one_line_errors():
        diagnosis = diagnose(collect(), bundle)
        if json:
            print(diagnosis.model_dump_json(indent=1))
        else:
            report(diagnosis)
        raise typer.Exit(int(diagnosis.broken))


def run(
    source: str,
    classes: str,
    bundle: Path,
    out: Path,
    legend: bool,
    loading: Mapping[str, Any],
    streaming: Mapping[str, Any],
) -> list[dict[str, float]]:
    """Segments every frame; returns the timings of each. The mappings are options of `Segmenter.load` and `stream`."""
    from runtime.segmenter import Segmenter
    from runtime.video import open_sink, open_source

    threads = loading["threads"]
    if threads is not None and threads < 1:
        raise InputError(f"--threads is {threads}; expected at least 1")
    show_memory_plans()
    frames = open_source(source)
    sink = open_sink(out, frames)
    timings = []
    with Segmenter.load(bundle, classes=classes, **loading) as segmenter, sink, progress_bar() as progress:
        shown, looked_at = tee(progress.track(frames, total=frames.length, description="segmenting"))
        results = segmenter.stream((frame.image for frame in looked_at), **streaming)
        for frame, result in zip(shown, results, strict=True):
            sink.write(frame.name, result.overlay(frame.image, legend=legend))
            timings.append(result.timings)
    console.print(f"wrote {sink.target}", soft_wrap=True)
    return timings


def progress_bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def timing_table(timings: list[dict[str, float]]) -> Table:
    """Mean milliseconds of each stage; the first frame is left out if there are others: it warms the engines."""
    warm = timings[1:] or timings
    table = Table("stage", "ms", title=f"mean of {len(warm)} frame{'s' if len(warm) > 1 else ''}")
    for stage in warm[0]:
        table.add_row(stage, f"{sum(frame[stage] for frame in warm) / len(warm):.1f}")
    return table


if __name__ == "__main__":
    app()
