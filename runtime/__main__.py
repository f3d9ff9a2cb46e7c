"""`python -m runtime`: segment photos, folders and videos from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from runtime.cli import console, one_line_errors
from runtime.errors import InputError

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
    backend: Annotated[str, typer.Option(help="onnxruntime, openvino or auto.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16 (default: the backend's).")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: the library's choice).")] = None,
    legend: Annotated[bool, typer.Option(help="Draw class names into the picture.")] = True,
) -> None:
    """Writes the source with its classes painted over it, and prints the mean time of each stage."""
    with one_line_errors():
        timings = run(source, classes, bundle, out, backend, precision, threads, legend)
    console.print(timing_table(timings))


def run(
    source: str,
    classes: str,
    bundle: Path,
    out: Path,
    backend: str,
    precision: str | None,
    threads: int | None,
    legend: bool,
) -> list[dict[str, float]]:
    """Segments every frame; returns the timings of each."""
    from runtime.segmenter import Segmenter
    from runtime.video import open_sink, open_source

    if threads is not None and threads < 1:
        raise InputError(f"--threads is {threads}; expected at least 1")
    frames = open_source(source)
    sink = open_sink(out, frames)
    timings = []
    with (
        Segmenter.load(bundle, classes=classes, backend=backend, precision=precision, threads=threads) as segmenter,
        sink,
        progress_bar() as progress,
    ):
        for frame in progress.track(frames, total=frames.length, description="segmenting"):
            result = segmenter(frame.image, scores=False)
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
