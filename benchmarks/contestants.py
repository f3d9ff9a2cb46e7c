"""The sides of the comparison, each as a `Segmenter`: a bundle's engines, and torch on the same weights.

On a CPU torch is the runtime's own pipeline around eager modules. On a GPU, where host arrays between the stages would
be unfair to it, it is a frame of its own that stays on the device, in three ways: eager float32 without TF32, eager
float16, and float16 through torch.compile.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict

from runtime.bundle import Bundle
from runtime.engines import CPU_BACKENDS, Backend
from runtime.engines.base import Array
from runtime.errors import InputError
from runtime.manifest import Manifest, Precision

if TYPE_CHECKING:  # an engine's own process must never import torch, and only a used library is in memory
    from torch import nn

    from benchmarks.torch_frame import TorchFrame
    from export.stages import Weights
    from export.torch_engine import TorchEngine
    from runtime.segmenter import Segmenter
    from runtime.text import TextEmbedder

Name = Literal["engine", "torch", "torch half", "torch compile"]
CUDA: Final = "cuda"


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

    @property
    def on_gpu(self) -> bool:
        return self.backend not in CPU_BACKENDS

    @property
    def torch_device(self) -> str:
        return CUDA if self.on_gpu else "cpu"


def contestant_names(task: Task, without_torch: str | None, compiles: bool) -> list[Name]:
    names: list[Name] = ["engine"]
    if without_torch is None:
        names.append("torch")
        if task.on_gpu:
            names.append("torch half")
            names += ["torch compile"] if compiles else []
    return names


def open_contestant(name: Name, task: Task) -> Segmenter:
    """Loads without classes, and without the warning of a random-weights bundle: the report says that itself.

    Raises:
        BundleError, EngineError, InputError, WeightsError: as their names say.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if name == "engine":
            return open_engines(task)
        return open_torch_on_gpu(name, task) if task.on_gpu else open_torch(task)


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


def open_torch_on_gpu(name: Name, task: Task) -> Segmenter:
    from runtime.segmenter import Segmenter

    bundle = Bundle.open(task.bundle)
    return Segmenter(bundle, torch_frame(name, bundle.manifest, task), open_embedder("torch", task), "rgb")


def torch_frame(name: Name, manifest: Manifest, task: Task) -> TorchFrame:
    """Eager, or compiled in torch.compile's default mode for static shapes."""
    import torch

    from benchmarks.torch_frame import TorchFrame, TorchStage
    from runtime.segmenter import TEXT_STAGE

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # the shapes stay: cuDNN may choose
    dtype = torch.float32 if name == "torch" else torch.float16
    word = {"torch": "fp32, eager", "torch half": "fp16, eager", "torch compile": "fp16, torch.compile"}[name]
    modules, stages = TorchModules(manifest, task), {}
    for stage in manifest.stages:
        if stage.name != TEXT_STAGE:
            module = modules.module(stage.name).to(task.torch_device, dtype)
            compiled = torch.compile(module, dynamic=False) if name == "torch compile" else module
            stages[stage.name] = TorchStage(compiled, word)
    return TorchFrame(manifest.pipeline, stages, task.torch_device, dtype)


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
        lambda ids: modules.encode(TEXT_STAGE, ids),
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
        self._device = task.torch_device
        self._weights = torch_weights(manifest, task.weights)
        self._stages = {stage.name: stage for stage in stage_table(config, manifest.pipeline.refinement)}

    def module(self, name: str) -> nn.Module:
        return self._stages[name].build(self._weights)

    def engine(self, name: str) -> TorchEngine:
        """On the CPU."""
        from export.torch_engine import TorchEngine

        return TorchEngine(self.module(name), [output.name for output in self._stages[name].outputs])

    def encode(self, stage: str, ids: Array) -> Array:
        """Token ids (K, T) to embeddings, with a text encoder that is freed again."""
        import torch

        with torch.inference_mode():
            text: Array = self.module(stage).to(self._device)(torch.from_numpy(ids).to(self._device)).cpu().numpy()
        return text


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
