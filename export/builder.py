"""Builds a bundle by running the product's own pipeline once, with each stage exported when it is first called.

The pipeline hands every stage real inputs in the order of the data: they serve as export examples and as parity
inputs, and only one stage's weights are in memory at a time.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export import onnx_graphs, parity, precision
from export.onnx_graphs import Graph
from export.presets import ModelConfig
from export.shipped import trained_classes
from export.stages import Stage, Weights, build_backbone, stage_table
from export.tokenizer import write_tokenizer
from export.torch_engine import TorchEngine
from runtime.bundle import TOKENIZER, Bundle, list_files, write_manifest
from runtime.engines import Backend, graph_precision, open_engine
from runtime.engines.base import Array, Tensors
from runtime.manifest import Manifest, PipelineSpec, Precision, StageEntry, StageParity
from runtime.pipeline import Pipeline, PipelineResult
from runtime.segmenter import text_embedder
from runtime.text import TextEmbedder, Tokenizer
from runtime.vocab import read_classes


@dataclass(frozen=True)
class Request:
    """What to build.

    Attributes:
        weights_dir: Folder of the weights, for what lies beside them; None: nothing does.
        graphs: Graph precisions, fp32 first: the others are made from it.
        runs: Backend and precision pairs whose results are compared with torch.
        photo: (H, W, 3) uint8 RGB, the parity image.
        vocabularies: Class lists whose embeddings go into the bundle.
        announce: Told what is being done, for the progress display.
    """

    config: ModelConfig
    weights: Weights
    weights_dir: Path | None
    refinement: bool
    graphs: tuple[Precision, ...]
    runs: tuple[tuple[Backend, Precision], ...]
    photo: Array
    classes: tuple[str, ...]
    vocabularies: tuple[Path, ...]
    announce: Callable[[str], None]


@dataclass
class BuiltStage:
    """A stage's graphs by precision, the seconds each took, and the engines' errors against torch."""

    stage: Stage
    graphs: dict[Precision, Graph] = field(default_factory=dict)
    seconds: dict[Precision, float] = field(default_factory=dict)
    parities: list[StageParity] = field(default_factory=list)


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
    builder = _Builder(request, root)
    table = {stage.name: stage for stage in stage_table(request.config, request.refinement)}
    engines = {name: ExportOnCall(builder, stage) for name, stage in table.items()}
    text = embed(request, root, engines["text_encoder"])
    expected = Pipeline(spec, engines)(request.photo, text)
    builder.free()

    stages = list(builder.built.values())
    parities = parity.worst(row for stage in stages for row in stage.parities)
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


class ExportOnCall:
    """Engine protocol around the torch reference: exports at the first call, compares engines at each."""

    precision = "fp32"

    def __init__(self, builder: _Builder, stage: Stage) -> None:
        self._builder, self._stage = builder, stage

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        return self._builder.run(self._stage, inputs)


class _Builder:
    def __init__(self, request: Request, root: Path) -> None:
        self._request, self._root = request, root
        self._live: tuple[Stage, TorchEngine] | None = None
        self.built: dict[str, BuiltStage] = {}

    def run(self, stage: Stage, inputs: Tensors) -> dict[str, Array]:
        """Torch's outputs on `inputs`, compared with every engine's."""
        if self._live is None or self._live[0] is not stage:
            self.free()
            self._live = stage, self._export(stage, inputs)
        expected = self._live[1](inputs)
        built = self.built[stage.name]
        for backend, name in self._request.runs:
            self._request.announce(f"{stage.name}: {backend} {name} against torch")
            # One engine at a time: a large stage must not be in memory more often than needed.
            found = open_engine(backend, built.graphs[graph_precision(name)].path, name, None)(inputs)
            built.parities.append(parity.compare(stage.name, name, backend, found, expected))
        return expected

    def free(self) -> None:
        self._live = None
        gc.collect()

    def _export(self, stage: Stage, inputs: Tensors) -> TorchEngine:
        announce, built = self._request.announce, BuiltStage(stage)
        self.built[stage.name] = built
        announce(f"{stage.name}: weights")
        module = stage.build(self._request.weights)
        for name in self._request.graphs:
            announce(f"{stage.name}: {name} graph")
            start = time.perf_counter()
            path = self._root / "onnx" / f"{stage.name}.{name}.onnx"
            if name == "fp32":
                built.graphs[name] = onnx_graphs.export_graph(stage, module, example(stage, inputs), path)
            else:
                model = onnx_graphs.load(built.graphs["fp32"].path)
                precision.to_fp16(model, stage.name)
                built.graphs[name] = onnx_graphs.save(model, path)
            built.seconds[name] = time.perf_counter() - start
        return TorchEngine(module, [spec.name for spec in stage.outputs])


def example(stage: Stage, inputs: Tensors) -> dict[str, Tensor]:
    """Export inputs: the real ones, with dynamic axes of length 1 doubled, which the exporter would fix."""
    tensors = {}
    for spec in stage.inputs:
        value = torch.from_numpy(np.ascontiguousarray(inputs[spec.name]))
        for i, axis in enumerate(spec.shape):
            if isinstance(axis, str) and value.shape[i] == 1:
                value = torch.cat([value, value], dim=i)
        tensors[spec.name] = value
    return tensors


def label_agreement(
    request: Request, spec: PipelineSpec, stages: list[BuiltStage], text: Array, expected: PipelineResult
) -> dict[str, float]:
    """Share of the parity image's pixels that each engine labels as torch float32 does, end to end."""
    agreement = {}
    for backend, name in request.runs:
        request.announce(f"end to end: {backend} {name} against torch")
        engines = {
            built.stage.name: open_engine(backend, built.graphs[graph_precision(name)].path, name, None)
            for built in stages
            if built.stage.name != "text_encoder"
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
                onnx={name: graph.path.relative_to(root).as_posix() for name, graph in built.graphs.items()},
            )
            for built in build.stages
        ),
        parity=tuple(build.parities),
        label_agreement=build.label_agreement,
        tools={"python": platform.python_version()} | {name: version(name) for name in packages},
        files=list_files(root),
    )
