"""Builds a bundle: fp32 graphs by running the product's own pipeline on torch once, typed graphs from them, and the
comparison of every engine with torch on the same inputs."""

from __future__ import annotations

import platform
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from export import gate, ladder
from export.ladder import Evidence
from export.parity_report import make_report, write_report
from export.ranges import RangeEngine
from export.reference import BuiltStage, ExportOnCall, Reference
from export.request import Build, Request
from export.shipped import trained_classes
from export.stages import build_backbone, stage_table
from export.tokenizer import write_tokenizer
from runtime.bundle import TOKENIZER, Bundle, list_files, write_manifest
from runtime.engines import open_engine
from runtime.engines.base import Array, Engine
from runtime.manifest import Manifest, PipelineSpec, StageEntry
from runtime.parity import gate_end_to_end
from runtime.pipeline import Pipeline
from runtime.segmenter import TEXT_STAGE, text_embedder
from runtime.text import TextEmbedder, Tokenizer
from runtime.vocab import read_classes

PACKAGES = {"onnxruntime-cuda": "onnxruntime-gpu"}  # what a backend is called where it is installed


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
    text = embed(request, root, engines[TEXT_STAGE], request.classes)
    expected = Pipeline(spec, engines)(request.photo, text)
    reference.free()

    stages = list(reference.built.values())
    add_typed_graphs(request, spec, stages, text)
    build = judge(request, spec, stages, text, expected.labels, root)
    request.announce("checksums")
    write_manifest(root, manifest(request, spec, build, root))
    if request.vocabularies:
        ship_embeddings(request, root)
    return build


def judge(
    request: Request, spec: PipelineSpec, stages: list[BuiltStage], text: Array, expected: Array, root: Path
) -> Build:
    """The parity report, and the gate.

    Raises:
        ParityError: an engine is beyond its limits.
    """
    parities = gate.compare_stages(request, stages)
    names = trained_classes(request.weights_dir) if request.scenes else ()
    encoder = next(built for built in stages if built.stage.name == TEXT_STAGE)
    scene_text = (
        embed(request, root, open_engine("onnxruntime", *encoder.graph("fp32"), None), names) if names else None
    )
    runs, labels = gate.run_whole_frames(request, spec, stages, text, scene_text, expected)
    report = make_report(parities, runs, request.weights.random)
    write_report(root, report, request.photo, expected, labels, request.classes)
    gate.gate_stages(parities, stages)
    if not request.weights.random:
        gate_end_to_end(runs)
    return Build(stages, parities, runs)


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


def embed(request: Request, root: Path, engine: Engine, classes: tuple[str, ...]) -> Array:
    """(K, 2, C) embeddings of class names."""
    prompting = request.config.prompting
    embedder = TextEmbedder(
        Tokenizer.from_file(root / TOKENIZER, prompting.context_length),
        lambda ids: engine({"token_ids": ids})["text"],
        prompt_template=prompting.template,
        first_synonym=prompting.first_synonym,
        cache_key="",
        cache_dir=None,
    )
    return embedder.embed(classes)


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
            if settled.precision.got == "fp16" and not settled.precision.regions:
                built.parities += built.eager_half
            if settled.graph is not None:
                built.graphs[settled.precision.got] = settled.graph
                built.seconds[settled.precision.got] = time.perf_counter() - start
    if request.strict:
        ladder.check_strict((built.stage.name, entry) for built in stages for entry in built.precisions)


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
        *{PACKAGES.get(backend, backend) for backend, _ in request.runs},
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
        end_to_end=tuple(build.end_to_end),
        tools={"python": platform.python_version()} | {name: version(name) for name in packages},
        files=list_files(root),
    )
