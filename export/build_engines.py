"""The build command: weights -> ONNX graphs -> parity report -> bundle.

python export/build_engines.py
python export/build_engines.py --preset vitl --weights checkpoints/ --refinement none --out bundles/vitl
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.box import SIMPLE
from rich.table import Table

from export.build_inputs import calibration_images, parity_photo, scenes_with_truth
from runtime.bundle import Bundle, new_bundle
from runtime.cli import console, one_line_errors, spinner
from runtime.engine_commands import build_for
from runtime.engine_commands import report as report_engines
from runtime.engines import Backend, choose_backend, graph_precision
from runtime.engines.tensorrt_library import load_library
from runtime.errors import InputError
from runtime.gpu import find_gpu
from runtime.manifest import Precision
from runtime.probe import probe_classes
from runtime.profiles import MOST_CLASSES
from runtime.targets import EngineBackend, resolve

if TYPE_CHECKING:  # torch takes seconds to import: --help and bad options do not wait for it
    from export.presets import ModelConfig
    from export.request import Build, Request
    from runtime.pipeline import Pipeline
    from runtime.text import TextEmbedder


class Graphs(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class RefinementChoice(str, Enum):
    checkpoint = "checkpoint"
    none = "none"


class BackendChoice(str, Enum):
    onnxruntime = "onnxruntime"
    onnxruntime_cuda = "onnxruntime-cuda"
    openvino = "openvino"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    preset: Annotated[str, typer.Option(help="Model size: tiny, vits, vitb or vitl (the paper's).")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="Bundle folder (default: bundles/PRESET).")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder with the official checkpoint files (default for tiny: its own).")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="For work on shapes and speed: segments nothing.")
    ] = False,
    refinement: Annotated[
        RefinementChoice, typer.Option(help="none: the training-free pipeline, public weights suffice.")
    ] = RefinementChoice.checkpoint,
    engine: Annotated[Graphs, typer.Option(help="fp16 or bf16 adds typed graphs, used where they hold.")] = Graphs.fp32,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where --engine does not hold for a stage.")] = False,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of images to measure ranges on (default: table-top scenes).")
    ] = None,
    backend: Annotated[
        list[BackendChoice] | None,
        typer.Option(help="Engines to compare with torch (default: onnxruntime); tensorrt and tensorrt-rtx to build."),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="GPU to build engines for: host, sm86 ... (default: host).")
    ] = None,
    photo: Annotated[Path | None, typer.Option(help="Photo for the parity check (default: a generated one).")] = None,
    vocabulary: Annotated[
        list[Path] | None, typer.Option(help="Class list (.txt, .json) to embed now: the bundle then knows its names.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a config field, e.g. geometry.stride=128.")
    ] = None,
) -> None:
    """Exports every stage to ONNX, compares it with torch and writes a checksummed bundle."""
    from export.presets import model_config

    with one_line_errors():
        config = model_config(preset, set_ or [])
        source = choose_weights(config, weights, random_weights)
        destination = out or Path("bundles") / config.name
        if len({path.stem for path in vocabulary or ()}) < len(vocabulary or ()):
            raise InputError("--vocabulary: two lists have the same file name, which names them in the bundle")
        chosen = [choice.value for choice in backend or []]
        built = [name for name in get_args(EngineBackend) if name in chosen]
        check_targets(built, target or [])
        runs = engine_runs([name for name in chosen if name not in built] or ["onnxruntime"], engine)
        with new_bundle(destination) as folder, spinner() as announce:
            announce("importing torch")
            from export.builder import build_bundle
            from export.checkpoints import CheckpointFolder
            from export.random_weights import RandomWeights
            from export.request import Request
            from export.shipped import trained_classes

            request = Request(
                config=config,
                weights=RandomWeights() if random_weights or source is None else CheckpointFolder(source, config),
                weights_dir=source,
                refinement=refinement is RefinementChoice.checkpoint,
                halves=() if engine is Graphs.fp32 else (engine.value,),
                strict=strict,
                runs=runs,
                photo=parity_photo(photo, source),
                calibration=calibration_images(calibration),
                scenes=scenes_with_truth(trained_classes(source)),
                classes=probe_classes(trained_classes(source)),
                vocabularies=tuple(vocabulary or ()),
                announce=announce,
            )
            build = build_bundle(request, folder)
        report(build, destination, random_weights)
        for name in built:
            build_device_engines(destination, name, target or [], engine.value, request)


def build_device_engines(
    root: Path, backend: EngineBackend, targets: list[str], asked: Precision, request: Request
) -> None:
    """From the finished bundle: what fails here leaves it as it is, and can be run again without the export.

    Raises:
        ParityError: an engine that can run here is wrong; the message names its first wrong tensor.
    """
    from export.engine_search import search_engine
    from export.gate import mean_iou

    def score(pipeline: Pipeline, embedder: TextEmbedder) -> float | None:
        return mean_iou(request, pipeline, embedder.embed(bundle.manifest.vocabulary))

    def search(stage: str) -> str:
        return search_engine(bundle, stage, backend, asked, (), photo)

    bundle, photo = Bundle.open(root), request.photo
    with spinner() as announce:
        bundle = build_for(bundle, backend, targets, asked, (), MOST_CLASSES, photo, announce, score, search)
    report_engines(bundle.manifest.engines, root)


def choose_weights(config: ModelConfig, weights: Path | None, random_weights: bool) -> Path | None:
    """The folder of the weights; with random weights, the one whose tokenizer fits the model, if it comes with one.

    Raises:
        InputError: no weights, or two kinds of them.
    """
    from export.shipped import shipped_weights

    found = weights or shipped_weights(config)
    if (random_weights and weights is not None) or (not random_weights and found is None):
        raise InputError(
            "give either --weights DIR with the official checkpoints, or --random-weights (weights come only with "
            "preset tiny, its text encoder unchanged)"
        )
    return found


def check_targets(backends: list[EngineBackend], targets: list[str]) -> None:
    """What cannot be built is refused before the export, which takes minutes.

    Raises:
        InputError, EngineError: as their names say.
    """
    if targets and not backends:
        raise InputError("--target is for --backend tensorrt or tensorrt-rtx; neither was given")
    for backend in backends:
        resolve(backend, targets, find_gpu())
        load_library(backend)


def engine_runs(backends: list[str], engine: Graphs) -> tuple[tuple[Backend, Precision], ...]:
    """Every graph in every engine, and OpenVINO's bf16 mode, which is its default."""
    runs: list[tuple[Backend, Precision]] = []
    for backend in backends:
        name, default = choose_backend(backend, None)
        best = default if backend == "openvino" else "fp32"
        asked = ("fp32", best, "fp16" if engine is Graphs.fp16 else "fp32")  # none of them runs typed bf16 graphs
        runs += [choose_backend(name, precision) for precision in dict.fromkeys(asked)]
    return tuple(runs)


def report(build: Build, target: Path, random_weights: bool) -> None:
    console.print(build_table(build))
    if any(built.precisions for built in build.stages):
        console.print(precision_table(build))
    for run in build.end_to_end:
        scores = "" if run.miou is None else f"; {run.miou:.2%} mIoU on {run.scenes} scenes"
        name = f"{run.backend} {run.precision}"
        console.print(f"end to end, {name}: {run.agreement:.3%} of pixels labelled as by torch fp32{scores}")
    if random_weights:
        console.print("random weights: this bundle is for shapes and speed, it segments nothing", style="yellow")
    console.print(f"bundle written to {target}", soft_wrap=True)


def build_table(build: Build) -> Table:
    """A row for every graph in every engine; a graph's own facts stand in its first row."""
    from export.ladder import EAGER, EMULATED

    table = Table("stage", "graph", "nodes", "parameters", "MB", "s", "engine", "max error", "rel. RMS", box=SIMPLE)
    for built in build.stages:
        for precision, graph in built.graphs.items():
            size, seconds = f"{graph.size / 1e6:.1f}", f"{built.seconds[precision]:.1f}"
            facts = [built.stage.name, precision, str(graph.nodes), f"{graph.parameters:,}", size, seconds]
            for row in build.parities:
                witness = row.backend in (EMULATED, EAGER)
                typed = row.precision if witness else graph_precision(row.precision)
                if row.stage == built.stage.name and typed == precision:
                    engine = row.backend if witness else f"{row.backend} {row.precision}"
                    table.add_row(*facts, engine, f"{row.max_abs_error:.1e}", f"{row.relative_rms_error:.0e}")
                    facts = [""] * len(facts)
    return table


def precision_table(build: Build) -> Table:
    """What became of the precision that was asked for."""
    table = Table("stage", "asked", "got", "FLOPs", "nodes in fp32", "why", box=SIMPLE)
    for built in build.stages:
        for entry in built.precisions:
            shares = ", ".join(f"{share:.1%} {name}" for name, share in entry.flops.items())
            islands = ", ".join(f"{count} {kind}" for kind, count in entry.islands.items())
            where = f"fp32 in {', '.join(entry.regions)}" if entry.regions else ""
            why = "; ".join(filter(None, (entry.reason, where)))
            table.add_row(built.stage.name, entry.asked, entry.got, shares, islands, why)
    return table


if __name__ == "__main__":
    app()
