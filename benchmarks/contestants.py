"""The two sides of the comparison, both as a `Segmenter`: a bundle's engines, and eager torch on the same weights."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from runtime.bundle import Bundle
from runtime.engines import Backend
from runtime.errors import InputError
from runtime.manifest import Manifest, Precision

if TYPE_CHECKING:  # an engine's own process must never import torch, and only a used library is in memory
    from export.stages import Weights
    from export.torch_engine import TorchEngine
    from runtime.segmenter import Segmenter
    from runtime.text import TextEmbedder

Name = Literal["engine", "torch"]


class Task(BaseModel):
    """What both sides are given, in a form that another process can read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path
    backend: Backend
    precision: Precision
    threads: int
    classes: tuple[str, ...]
    weights: Path | None
    photo: Path
    """A .npy file: reading it costs no picture decoder."""
    warmup: int
    frames: int


def open_contestant(name: Name, task: Task) -> Segmenter:
    """Loads without classes, and without the warning of a random-weights bundle: the report says that itself.

    Raises:
        BundleError, EngineError, InputError, WeightsError: as their names say.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return open_engines(task) if name == "engine" else open_torch(task)


def open_engines(task: Task) -> Segmenter:
    from runtime.segmenter import Segmenter

    return Segmenter.load(
        task.bundle, backend=task.backend, precision=task.precision, threads=task.threads, cache_dir=None
    )


def open_torch(task: Task) -> Segmenter:
    """The runtime's own pipeline and text path around the exporter's modules, in eager float32."""
    from runtime.pipeline import Pipeline
    from runtime.segmenter import TEXT_STAGE, Segmenter

    bundle = Bundle.open(task.bundle)
    stages = [stage.name for stage in bundle.manifest.stages if stage.name != TEXT_STAGE]
    modules = TorchModules(bundle.manifest, task)
    pipeline = Pipeline(bundle.manifest.pipeline, {name: modules.engine(name) for name in stages})
    return Segmenter(bundle, pipeline, open_embedder("torch", task), "rgb")


def open_embedder(name: Name, task: Task) -> TextEmbedder:
    """A text path that has seen no class name yet: neither from a cache nor from the bundle.

    The text encoder is opened when names are embedded and closed again, as the runtime does.
    """
    from runtime.segmenter import TEXT_STAGE, text_embedder
    from runtime.text import TextEmbedder, Tokenizer

    bundle = Bundle.open(task.bundle)
    if name == "engine":
        return text_embedder(bundle, task.backend, task.threads, None)
    modules, prompting = TorchModules(bundle.manifest, task), bundle.manifest.prompting
    return TextEmbedder(
        Tokenizer.from_file(bundle.tokenizer(), prompting.context_length),
        lambda ids: modules.engine(TEXT_STAGE)({"token_ids": ids})["text"],
        prompt_template=prompting.template,
        first_synonym=prompting.first_synonym,
        cache_key="",
        cache_dir=None,
        batch=64,
    )


class TorchModules:
    """The exporter's modules with the bundle's weights, each built when it is asked for."""

    def __init__(self, manifest: Manifest, task: Task) -> None:
        import torch

        from export.presets import ModelConfig
        from export.stages import stage_table

        torch.set_num_threads(task.threads)
        config = ModelConfig.model_validate(manifest.model)
        self._weights = torch_weights(manifest, task.weights)
        self._stages = {stage.name: stage for stage in stage_table(config, manifest.pipeline.refinement)}

    def engine(self, name: str) -> TorchEngine:
        from export.torch_engine import TorchEngine

        stage = self._stages[name]
        return TorchEngine(stage.build(self._weights), [output.name for output in stage.outputs])


def torch_weights(manifest: Manifest, folder: Path | None) -> Weights:
    """The weights that the bundle was built from.

    Raises:
        InputError: the folder holds other weights.
        WeightsError: the folder lacks a checkpoint.
    """
    from export.random_weights import RandomWeights

    if manifest.random_weights:
        return RandomWeights()
    from export.checkpoints import CheckpointFolder
    from export.presets import ModelConfig
    from runtime.bundle import sha256

    folder = folder or own_weights(manifest)
    if folder is None:
        raise InputError("the bundle was built from checkpoints; give their folder with --weights DIR")

    for name, expected in manifest.weights.items():
        path = folder / name
        found = sha256(path) if path.is_file() else None
        if found != expected:
            state = "is missing" if found is None else f"has sha256 {found[:12]}..., expected {expected[:12]}..."
            raise InputError(f"--weights {folder}: {name} {state}; give the folder that the bundle was built from")
    return CheckpointFolder(folder, ModelConfig.model_validate(manifest.model))


def why_no_torch(manifest: Manifest, weights: Path | None, declined: bool) -> str | None:
    """Why the torch column is left out, or None if it can be measured.

    Raises:
        InputError: weights for a bundle that was built without any.
    """
    if manifest.random_weights and weights is not None:
        raise InputError("--weights is of no use: this bundle was built with random weights, which torch makes again")
    if declined:
        return "--no-torch was given"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed (pip install 'dinov3seg-deploy[export]')"
    if not manifest.random_weights and weights is None and own_weights(manifest) is None:
        return "the bundle was built from checkpoints; give their folder with --weights DIR"
    return None


def own_weights(manifest: Manifest) -> Path | None:
    """The folder of the weights that come with the project, if they are this bundle's."""
    from export.presets import ModelConfig
    from export.shipped import shipped_weights

    return shipped_weights(ModelConfig.model_validate(manifest.model))
