"""Every engine against torch, stage by stage and on whole frames: what fails is named down to the tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.segmentation_metrics import Confusion, mean_of
from export.bisection import first_wrong
from export.ladder import EAGER, EMULATED
from export.reference import BuiltStage
from export.request import Request
from runtime.engines import choose_backend, open_engine
from runtime.engines.base import Array, Engine
from runtime.errors import ParityError
from runtime.manifest import EndToEnd, PipelineSpec, Precision, StageParity
from runtime.parity import LIMITS, compare, objection, passes, worst
from runtime.pipeline import Pipeline
from runtime.segmenter import TEXT_STAGE


def compare_stages(request: Request, stages: list[BuiltStage]) -> list[StageParity]:
    """The worst call of every stage in every engine, in the order of the data."""
    return worst(row for built in stages for row in (*built.parities, *compare_stage(request, built)))


def compare_stage(request: Request, built: BuiltStage) -> list[StageParity]:
    """Every engine on what torch was given. One at a time: a large stage must not be in memory more often."""
    rows: dict[tuple[str, str], list[StageParity]] = {}
    for backend, asked in request.runs:
        path, precision = engine_graph(built, asked)
        if (backend, precision) in rows:  # where fp16 does not hold, the fp32 graph stands for it
            continue
        request.announce(f"{built.stage.name}: {backend} {precision} against torch")
        engine = open_engine(backend, path, precision, None)
        rows[backend, precision] = [
            compare(built.stage.name, precision, backend, engine(call.inputs), call.expected) for call in built.calls
        ]
    return [row for found in rows.values() for row in found]


def engine_graph(built: BuiltStage, asked: Precision) -> tuple[Path, Precision]:
    """On a CPU, bf16 is OpenVINO's mode of the fp32 graph."""
    return (built.graphs["fp32"].path, "bf16") if asked == "bf16" else built.graph(asked)


def run_whole_frames(
    request: Request,
    spec: PipelineSpec,
    stages: list[BuiltStage],
    text: Array,
    scene_text: Array | None,
    expected: Array,
) -> tuple[list[EndToEnd], dict[str, Array]]:
    """Every engine on the parity photo and on the scenes with ground truth.

    Args:
        text: (K, 2, C) embeddings of the parity classes.
        scene_text: Those of the trained classes; None without scenes.
        expected: (H, W) labels of torch on the photo.

    Returns:
        A row for each engine, and its labels of the photo by its name.
    """
    rows: list[EndToEnd] = []
    labels: dict[str, Array] = {}
    for backend, precision in request.runs:
        name = f"{backend} {precision}"
        request.announce(f"end to end: {name} against torch")
        engines: dict[str, Engine] = {
            built.stage.name: open_engine(backend, *engine_graph(built, precision), None)
            for built in stages
            if built.stage.name != TEXT_STAGE
        }
        pipeline = Pipeline(spec, engines)
        labels[name] = pipeline(request.photo, text).labels
        miou = None if scene_text is None else mean_iou(request, pipeline, scene_text)
        row = EndToEnd(
            backend=backend,
            precision=precision,
            agreement=float(np.mean(labels[name] == expected)),
            scenes=len(request.scenes) if miou is not None else 0,
            miou=miou,
            miou_reference=rows[0].miou if rows else miou,
        )
        rows.append(row)
    return rows, labels


def mean_iou(request: Request, pipeline: Pipeline, text: Array) -> float | None:
    confusion = Confusion(len(text))
    for number, (image, truth) in enumerate(request.scenes, start=1):
        request.announce(f"scene {number} of {len(request.scenes)}")
        confusion.add(truth, pipeline(image, text).labels)
    return mean_of(confusion.ious())


def gate_stages(parities: list[StageParity], stages: list[BuiltStage]) -> None:
    """Raises ParityError for the first stage, in the order of the data, that is beyond the limits of its precision.

    The message names the first tensor that is.
    """
    by_name = {built.stage.name: built for built in stages}
    for parity in parities:
        if not passes(parity):
            inner = "" if parity.backend in (EMULATED, EAGER) else search(parity, by_name[parity.stage])
            raise ParityError(f"{objection(parity)}; {inner or 'no inner tensor alone is beyond that'}")


def search(parity: StageParity, built: BuiltStage) -> str:
    """The first wrong tensor on the call that is worst."""
    backend, _ = choose_backend(parity.backend, None)
    graph, precision = engine_graph(built, parity.precision)
    limit = LIMITS[precision].relative_rms
    for call in built.calls:
        found = first_wrong(
            lambda path: open_engine(backend, path, precision, None),
            graph,
            built.graphs["fp32"].path,
            call.inputs,
            limit,
        )
        if found is not None:
            return str(found)
    return ""
