"""What reusing features costs and gains on film: generated clips with a moving object and with a moving camera.

python benchmarks/video.py --bundle bundles/tiny
python benchmarks/video.py --bundle bundles/vitl --engine fp16 --frames 32 --clips 2 --size 640
"""

from __future__ import annotations

import os
import sys
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import benchmarks  # noqa: F401  # before anything that imports `kernels`, see there
from runtime.cli import console, one_line_errors

if TYPE_CHECKING:  # --help waits for no library
    from benchmarks.video_record import VideoRecord
    from benchmarks.video_run import Example
    from runtime.bundle import Bundle
    from runtime.engines import Backend
    from runtime.manifest import Precision

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    engine: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16 (default: the backend's).")] = None,
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")] = Path("bundles/tiny"),
    backend: Annotated[str, typer.Option(help="onnxruntime, openvino, tensorrt ... or auto.")] = "auto",
    clips: Annotated[int, typer.Option(help="How many of each kind.", min=1)] = 4,
    frames: Annotated[int, typer.Option(help="Of each clip.", min=2)] = 24,
    size: Annotated[int, typer.Option(help="Side of the frames in pixels.", min=96)] = 320,
    classes: Annotated[
        int, typer.Option(help="How many are looked for: those of the clip, and others.", min=20, max=69)
    ] = 20,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: every core).", min=1)] = None,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("benchmarks/results"),
) -> None:
    """Compares `stream(reuse_global=, crops=)` with every frame in full; prints a table, writes .json and picture."""
    with one_line_errors():
        from benchmarks.latency import check_writable
        from benchmarks.machine import usable_cores
        from benchmarks.video_record import print_report
        from runtime.bundle import Bundle
        from runtime.engines import backend_for

        opened = Bundle.open(bundle)
        library, precision = backend_for(opened, backend, engine)
        check_writable(out)
        used = threads or usable_cores()
        record, examples = measure(opened, library, precision, used, clips, frames, size, classes)
        print_report(console, record)
        for path in write(record, examples, out):
            console.print(f"wrote {path}", soft_wrap=True)


def measure(
    bundle: Bundle,
    backend: Backend,
    precision: Precision,
    threads: int,
    clips: int,
    frames: int,
    size: int,
    classes: int,
) -> tuple[VideoRecord, list[Example]]:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the kernels
    import numpy as np

    from benchmarks.machine import load_average, this_machine, versions
    from benchmarks.record import BundleIdentity, busy, caveats, relative_command
    from benchmarks.scene_vocabulary import VOCABULARY
    from benchmarks.video_record import VideoRecord
    from benchmarks.video_run import SETTINGS, evaluate, open_pipelines
    from runtime.reuse import THRESHOLD
    from runtime.segmenter import text_embedder

    before, manifest, machine = load_average(), bundle.manifest, this_machine()
    pipelines = open_pipelines(bundle, backend, precision, threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # words that a model does not know say nothing about time
            text = text_embedder(bundle, backend, threads, None).embed(list(VOCABULARY))
        for pipeline in pipelines:  # the first frame loads and tunes
            pipeline(np.zeros((size, size, 3), np.uint8), text[:classes], scores=False)
        console.print(f"{len(SETTINGS)} settings in turn: 2 x {clips} clips of {frames} frames")
        scores, examples = evaluate(pipelines, text, manifest.pipeline.geometry, clips, frames, size, classes)
        found = {stage: one.precision for stage, one in pipelines[0].engines.items()}
    finally:
        for pipeline in pipelines:
            pipeline.close()
    record = VideoRecord(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=relative_command("benchmarks/video.py", sys.argv[1:]),
        machine=machine,
        versions=versions(),
        load_average=(before, load_average()),
        threads=threads,
        bundle=BundleIdentity.of(bundle),
        backend=backend,
        asked_precision=precision,
        precision=found,
        geometry=manifest.pipeline.geometry,
        clips=clips,
        frames=frames,
        size=size,
        classes=classes,
        threshold=THRESHOLD,
        remarks=tuple(caveats(precision, found, manifest.random_weights) + busy(before, machine.cores)),
        scores=tuple(scores),
    )
    return record, examples


def write(record: VideoRecord, examples: list[Example], out: Path) -> list[Path]:
    """The .json and, where matplotlib is installed, the picture. Raises OutputError: the folder cannot be written."""
    from benchmarks.result_files import save_results

    def chart(path: Path) -> None:
        from benchmarks.scene_vocabulary import VOCABULARY
        from benchmarks.video_chart import save_video_chart

        save_video_chart(path, record, examples, VOCABULARY)

    return save_results(record, out / record.machine.slug, record.stem, {".png": chart})


if __name__ == "__main__":
    app()
