"""Builds a bundle: fp32 graphs by running the product's own pipeline on torch once, typed graphs from them, and the
comparison of every engine with torch on the same inputs."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np

from export import ladder, parity
from export.ladder import Evidence
from export.precision import Half
from export.presets import ModelConfig
from export.ranges import RangeEngine
from export.reference import BuiltStage, ExportOnCall, Reference
from export.shipped import trained_classes
from export.stages import Weights, build_backbone, stage_table
from export.tokenizer import write_tokenizer
from runtime.bundle import TOKENIZER, Bundle, list_files, write_manifest
from runtime.engines import Backend, open_engine
from runtime.engines.base import Array, Engine
from runtime.manifest import Manifest, PipelineSpec, Precision, StageEntry, StageParity
from runtime.pipeline import Pipeline, PipelineResult
from runtime.segmenter import TEXT_STAGE, text_embedder
from runtime.text import TextEmbedder, Tokenizer
from runtime.vocab import read_classes


@dataclass(frozen=True)
class Request:
    """What to build.

    Attributes:
        weights_dir: Folder of the weights, for what lies beside them; None: nothing does.
        halves: Precisions of the graphs that are made from the fp32 ones, used where they hold.
        strict: A stage where one does not hold ends the build.
        runs: Backend and precision pairs whose results are compared with torch.
        photo: (H, W, 3) uint8 RGB, the parity image.
        calibration: More images, on which the range of every value is measured.
        vocabularies: Class lists whose embeddings go into the bundle.
        announce: Told what is being done, for the progress display.
    """

    config: ModelConfig
    weights: Weights
    weights_dir: Path | None
    refinement: bool
    halves: tuple[Half, ...]
    strict: bool
    runs: tuple[tuple[Backend, Precision], ...]
    photo: Array
    calibration: tuple[Array, ...]
    classes: tuple[str, ...]
    vocabularies: tuple[Path, ...]
    announce: Callable[[str], None]


@dataclass(frozen=True)
class Build:
    stages: list[BuiltStage]
    parities: list[StageParity]
    label_agreement: dict[str, float]


def build_bundle(request: Request, root: Path) -> Build:
    """Fills the folder `root` with a whole bundle.

    Raises:
        WeightsError, ExportError, ParityError: as their names say; nothing in `root` is then of use.
    """
    spec = pipeline_spec(request)
    write_tokenizer(request.weights_dir, request.config.text.vocab_size, root / TOKENIZER)
    reference = Reference(request.weights, root / "onnx", "fp16" in request.halves, request.announce)
    table = {stage.name: stage for stage in stage_table(request.config, request.refinement)}
    engines = {name: ExportOnCall(reference, stage) for name, stage in table.items()}
    text = embed(request, root, engines[TEXT_STAGE])
    expected = Pipeline(spec, engines)(request.photo, text)
    reference.free()

    stages = list(reference.built.values())
    add_typed_graphs(request, spec, stages, text)
    parities = parity.worst(row for built in stages for row in (*built.parities, *compare_engines(request, built)))
    parity.gate(parities)
    agreement = label_agreement(request, spec, stages, text, expected)
    build = Build(stages, parities, agreement)
    request.announce("checksums")
    write_manifest(root, manifest(request, spec, build, root))
    if request.vocabularies:
        ship_embeddings(request, root)
    return build


def pipeline_spec(request: Request) -> PipelineSpec:
    """The rotary periods come from the checkpoint, which rounds them."""
    config = request.config
    backbone = build_backbone(config)
    request.weights.fill(backbone, "backbone")
    return PipelineSpec(
        geometry=config.geometry,
        sam_size=config.sam_size,
        rope_periods=tuple(backbone.rope_embed.periods.tolist()),
        prefix_tokens=backbone.prefix_tokens,
        early_refinement=config.early_refinement,
        refinement=request.refinement,
        pad_len=config.refinement.pad_len,
        training_free_text=config.training_free_text,
    )


def embed(request: Request, root: Path, engine: ExportOnCall) -> Array:
    """(K, 2, C) embeddings of the parity classes."""
    prompting = request.config.prompting
    embedder = TextEmbedder(
        Tokenizer.from_file(root / TOKENIZER, prompting.context_length),
        lambda ids: engine({"token_ids": ids})["text"],
        prompt_template=prompting.template,
        first_synonym=prompting.first_synonym,
        cache_key="",
        cache_dir=None,
    )
    return embedder.embed(request.classes)


def add_typed_graphs(request: Request, spec: PipelineSpec, stages: list[BuiltStage], text: Array) -> None:
    """Settles every stage's precision on the range of its values over the calibration images."""
    if not request.halves:
        return
    ranges = {built.stage.name: RangeEngine(built.graphs["fp32"].path) for built in stages}
    for number, image in enumerate((request.photo, *request.calibration), start=1):
        request.announce(f"ranges of all values: image {number} of {1 + len(request.calibration)}")
        Pipeline(spec, ranges)(image, text)
    for built in stages:
        name, graph = built.stage.name, built.graphs["fp32"].path
        evidence = Evidence(name, graph, built.calls, ranges[name].largest, built.half_is_finite)
        for asked in request.halves:
            request.announce(f"{name}: {asked} where it holds")
            start = time.perf_counter()
            settled = ladder.settle(evidence, asked, graph.parent)
            built.precisions.append(settled.precision)
            built.parities += settled.parities
            if settled.graph is not None:
                built.graphs[settled.precision.got] = settled.graph
                built.seconds[settled.precision.got] = time.perf_counter() - start
    if request.strict:
        ladder.check_strict((built.stage.name, entry) for built in stages for entry in built.precisions)


def compare_engines(request: Request, built: BuiltStage) -> list[StageParity]:
    """Every engine on what torch was given. One at a time: a large stage must not be in memory more often."""
    rows: dict[tuple[str, str], list[StageParity]] = {}
    for backend, asked in request.runs:
        path, precision = engine_graph(built, asked)
        if (backend, precision) in rows:  # where fp16 does not hold, the fp32 graph stands for it
            continue
        request.announce(f"{built.stage.name}: {backend} {precision} against torch")
        engine = open_engine(backend, path, precision, None)
        rows[backend, precision] = [
            parity.compare(built.stage.name, precision, backend, engine(call.inputs), call.expected)
            for call in built.calls
        ]
    return [row for found in rows.values() for row in found]


def engine_graph(built: BuiltStage, asked: Precision) -> tuple[Path, Precision]:
    """On a CPU, bf16 is OpenVINO's mode of the fp32 graph."""
    return (built.graphs["fp32"].path, "bf16") if asked == "bf16" else built.graph(asked)


def label_agreement(
    request: Request, spec: PipelineSpec, stages: list[BuiltStage], text: Array, expected: PipelineResult
) -> dict[str, float]:
    """Share of the parity image's pixels that each engine labels as torch float32 does, end to end."""
    agreement = {}
    for backend, name in request.runs:
        request.announce(f"end to end: {backend} {name} against torch")
        engines: dict[str, Engine] = {
            built.stage.name: open_engine(backend, *engine_graph(built, name), None)
            for built in stages
            if built.stage.name != TEXT_STAGE
        }
        labels = Pipeline(spec, engines)(request.photo, text).labels
        agreement[f"{backend} {name}"] = float(np.mean(labels == expected.labels))
    return agreement


def ship_embeddings(request: Request, root: Path) -> None:
    """Embeds whole class lists now, so that a robot need not load the text encoder."""
    bundle = Bundle.open(root)
    embedder = text_embedder(bundle, "onnxruntime", threads=None, cache_dir=None)
    (root / "text").mkdir()
    for path in request.vocabularies:
        request.announce(f"embeddings of {path.name}")
        embedder.save(root / "text" / f"{path.stem}.npz", read_classes(path))
    write_manifest(root, bundle.manifest.model_copy(update={"files": list_files(root)}))


def manifest(request: Request, spec: PipelineSpec, build: Build, root: Path) -> Manifest:
    packages = (
        "dinov3seg-deploy",
        "torch",
        "onnx",
        "onnxscript",
        "numpy",
        *{backend for backend, _ in request.runs},
    )
    return Manifest(
        name=request.config.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        pipeline=spec,
        prompting=request.config.prompting,
        weights=request.weights.checksums(),
        random_weights=request.weights.random,
        vocabulary=trained_classes(request.weights_dir),
        model=request.config.model_dump(mode="json"),
        stages=tuple(
            StageEntry(
                name=built.stage.name,
                inputs=built.stage.inputs,
                outputs=built.stage.outputs,
                parameters=built.graphs["fp32"].parameters,
                onnx={
                    name: built.graphs[got].path.relative_to(root).as_posix()
                    for name, got in (("fp32", "fp32"), *((entry.asked, entry.got) for entry in built.precisions))
                },
                precisions=tuple(built.precisions),
            )
            for built in build.stages
        ),
        parity=tuple(build.parities),
        label_agreement=build.label_agreement,
        tools={"python": platform.python_version()} | {name: version(name) for name in packages},
        files=list_files(root),
    )
