"""The first tensor that goes wrong in a built engine: `python export/engine_search.py BUNDLE STAGE`, on its GPU.

For a stage that the parity gate has refused. Needs the `onnx` package beside the runtime, and no PyTorch. An altered
engine, which gives inner tensors too, may fuse otherwise than the one that was refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from export.bisection import first_wrong
from runtime.bundle import Bundle, sha256
from runtime.cli import console, one_line_errors, spinner
from runtime.engine_cache import engine_key
from runtime.engines import open_stage
from runtime.engines.base import Array, Engine, Tensors
from runtime.engines.on_host import HostEngine
from runtime.engines.tensorrt import OpenEngine
from runtime.engines.tensorrt_build import Job, build_engine
from runtime.engines.tensorrt_library import Library, load_library
from runtime.gpu import find_gpu
from runtime.manifest import EngineEntry, EngineKey, FileEntry, Precision
from runtime.parity import LIMITS
from runtime.pipeline import Pipeline
from runtime.probe import generated_photo, probe_classes
from runtime.profiles import MOST_CLASSES
from runtime.segmenter import TEXT_STAGE, text_embedder
from runtime.targets import EngineBackend, resolve
from runtime.video import read_photo

NOTHING = "no inner tensor alone is beyond the limit"


class Graphs(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class Recorder:
    """Engine protocol: remembers what an engine was given."""

    precision = "fp32"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.calls: list[Tensors] = []

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        self.calls.append({name: value.copy() for name, value in inputs.items()})
        return self._engine(inputs)


def search_engine(
    bundle: Bundle, stage: str, backend: EngineBackend, asked: Precision, options: Sequence[str], photo: Array
) -> str:
    """Builds engines that give inner tensors, a group at a time, and compares them with ONNX Runtime in fp32.

    Args:
        photo: (H, W, 3) uint8 RGB.

    Raises:
        EngineError: the library is missing, there is no GPU, or a build failed.
    """
    library, targets = load_library(backend), resolve(backend, [], find_gpu())
    key = engine_key(bundle, bundle.stage(stage), library, targets, asked, options, MOST_CLASSES)
    graph, reference = bundle.onnx(stage, asked).absolute(), bundle.onnx(stage, "fp32")
    with tempfile.TemporaryDirectory() as folder:
        open_graph = opener(library, key, Path(folder))
        for inputs in calls_of(bundle, stage, photo):
            found = first_wrong(open_graph, graph, reference, inputs, LIMITS[key.precision].relative_rms)
            if found is not None:
                return str(found)
    return NOTHING


def opener(library: Library, key: EngineKey, folder: Path) -> Callable[[Path], Engine]:
    """Builds and opens an engine of any graph with the inputs of the key's stage."""

    def open_graph(graph: Path) -> Engine:
        plan = folder / "plan"
        facts = build_engine(Job(key=key, graph=graph, plan=plan))
        file = FileEntry(sha256=sha256(plan), size=plan.stat().st_size)
        return HostEngine(OpenEngine(library, folder, EngineEntry(key=key, path=plan.name, file=file, facts=facts)))

    return open_graph


def calls_of(bundle: Bundle, stage: str, photo: Array) -> list[Tensors]:
    """What a stage is given for a photo, with ONNX Runtime in fp32 before it."""
    embedder = text_embedder(bundle, "onnxruntime", None, None)
    classes = list(probe_classes(bundle.manifest.vocabulary))
    if stage == TEXT_STAGE:
        return [{"token_ids": embedder.tokenizer.encode([embedder.prompt(name) for name in classes])}]
    names = [entry.name for entry in bundle.manifest.stages if entry.name != TEXT_STAGE]
    engines = {name: Recorder(open_stage(bundle, name, "onnxruntime", "fp32", None)) for name in names}
    Pipeline(bundle.manifest.pipeline, engines)(photo, embedder.embed(classes))
    return engines[stage].calls


def main(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    stage: Annotated[str, typer.Argument(help="The stage that the parity gate named.")],
    tensorrt_rtx: Annotated[bool, typer.Option("--tensorrt-rtx", help="With TensorRT-RTX.")] = False,
    engine: Annotated[Graphs, typer.Option(help="What the engine was built from.")] = Graphs.fp16,
    unfused_attention: Annotated[bool, typer.Option("--unfused-attention", help="As the engine was built.")] = False,
    photo: Annotated[Path | None, typer.Option(help="Photo (default: a generated one).")] = None,
) -> None:
    """Names the first tensor of a stage that goes wrong in an engine on this GPU."""
    with one_line_errors():
        with spinner() as announce:
            announce(f"{stage}: engines that give inner tensors")
            opened = Bundle.open(bundle)
            backend: EngineBackend = "tensorrt-rtx" if tensorrt_rtx else "tensorrt"
            options = ("unfused-attention",) if unfused_attention else ()
            image = generated_photo() if photo is None else read_photo(photo)
            found = search_engine(opened, stage, backend, engine.value, options, image)
        console.print(f"stage {stage}: {found}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
