"""Every buffer of a frame, from the stage table, before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import EngineError
from runtime.manifest import PipelineSpec, StageEntry
from runtime.pipeline import CLASS_CHUNK
from runtime.profiles import PATCH

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """What a frame's buffers depend on."""

    height: int
    width: int
    classes: int


@dataclass(frozen=True)
class Planned:
    """`on_host`: pinned memory, beside the device's."""

    name: str
    shape: Shape
    dtype: str
    on_host: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Call:
    """One place where an engine is called: its inputs and outputs are buffers, by their names in the plan.

    `offsets` are elements from the start of a buffer, for a chunk of classes. Calls with the same `context` run one
    after the other and share an execution context.
    """

    site: str
    stage: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    shapes: Mapping[str, Shape]
    offsets: Mapping[str, int]

    @property
    def context(self) -> tuple[str, frozenset[tuple[str, Shape]]]:
        return self.stage, frozenset(self.shapes.items())


@dataclass(frozen=True)
class FramePlan:
    size: Size
    buffers: tuple[Planned, ...]
    calls: tuple[Call, ...]

    def nbytes(self) -> int:
        """On the device."""
        return sum(buffer.nbytes for buffer in self.buffers if not buffer.on_host)


def needs_host(spec: PipelineSpec, classes: int) -> bool:
    """Whether something between two stages is computed in NumPy only: which classes are refined, where there are more
    than the head takes; AnyUp on each view; the mean over both text halves."""
    chosen = spec.refinement and 0 < spec.pad_len < classes
    mean = not spec.refinement and spec.training_free_text == "mean"
    return chosen or mean or spec.early_refinement == "before_merge"


def plan_frame(bundle: Bundle, size: Size, scores: bool) -> FramePlan:
    """The buffers and calls of one frame, of a model that does not need the host in between."""
    spec = bundle.manifest.pipeline
    geometry = spec.geometry
    side, crop, crops = geometry.image_size, geometry.crop_size, geometry.crops
    grid, channels = geometry.grid, int(bundle.stage("correlation").inputs[1].shape[-1])
    labels = "uint8" if size.classes <= 255 else "uint16"
    buffers = [
        Planned("photo", (size.height, size.width, 3), "uint8"),
        Planned("photo host", (size.height, size.width, 3), "uint8", on_host=True),
        Planned("image", (1, 3, side, side), "float32"),
        Planned("crops", (crops, 3, crop, crop), "float32"),
        Planned("merged", (1, grid * grid, channels), "float32"),
        Planned("text", (size.classes, 2, channels), "float32"),
        Planned("text host", (size.classes, 2, channels), "float32", on_host=True),
        Planned("labels", (size.height, size.width), labels),
        Planned("labels host", (size.height, size.width), labels, on_host=True),
    ]
    if scores:
        buffers += [
            Planned("scores", (size.height, size.width), "float32"),
            Planned("scores host", (size.height, size.width), "float32", on_host=True),
        ]
    if spec.refinement and spec.sam_size != side:
        buffers.append(Planned("sam image", (1, 3, spec.sam_size, spec.sam_size), "float32"))
    for name, length in (("crops", geometry.crop_grid), ("full", grid)):
        tokens = spec.prefix_tokens + length * length
        width = next(one.shape[-1] for one in bundle.stage("backbone").inputs if one.name == "rope_sin")
        for table in ("rope_sin", "rope_cos"):
            buffers.append(Planned(f"{table} {name}", (tokens, int(width)), "float32"))
    calls = list(_calls(bundle, size))
    known = {buffer.name for buffer in buffers}
    for call in calls:
        for stage_output, name in call.outputs.items():
            if name not in known:
                known.add(name)
                whole = size.classes if call.stage == "decoder" else None
                buffers.append(
                    Planned(name, _output_shape(bundle.stage(call.stage), stage_output, call, whole), "float32")
                )
    return FramePlan(size, tuple(buffers), tuple(calls))


def _calls(bundle: Bundle, size: Size) -> Iterable[Call]:
    spec = bundle.manifest.pipeline
    for view, image in (("crops", "crops"), ("full", "image")):
        tables = {table: f"{table} {view}" for table in ("rope_sin", "rope_cos")}
        side = spec.geometry.crop_size if view == "crops" else spec.geometry.image_size
        batch = spec.geometry.crops if view == "crops" else 1
        tokens = spec.prefix_tokens + (side // PATCH) ** 2
        axes = {"batch": batch, "height": side, "width": side, "tokens": tokens}
        inputs = {"image": image} | tables
        yield _call(bundle, f"backbone {view}", "backbone", inputs, {"features": f"features {view}"}, axes)
    features = "merged"
    if spec.early_refinement == "after_merge":
        features = "refined"
        yield _call(bundle, "anyup", "anyup", {"image": "image", "features": "merged"}, {"refined": features}, {})
    classes = {"classes": size.classes}
    inputs = {"features": features, "text": "text"}
    yield _call(bundle, "correlation", "correlation", inputs, {"correlation": "correlation"}, classes)
    if not spec.refinement:
        return
    image = "image" if spec.sam_size == spec.geometry.image_size else "sam image"
    guidance = {name: name for name in ("guidance0", "guidance1", "guidance2")}
    yield _call(bundle, "sam_encoder", "sam_encoder", {"image": image}, guidance, {})
    inputs = {name: name for name in ("correlation", "guidance0", "text")}
    yield _call(bundle, "refinement", "refinement", inputs, {"class_features": "class_features"}, classes)
    for start in range(0, size.classes, CLASS_CHUNK):
        count = min(CLASS_CHUNK, size.classes - start)
        inputs = {name: name for name in ("class_features", "guidance1", "guidance2")}
        site = f"decoder {start}"
        yield _call(bundle, site, "decoder", inputs, {"logits": "logits"}, {"classes": count}, start)


def _call(
    bundle: Bundle,
    site: str,
    stage: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    axes: Mapping[str, int],
    first_class: int = 0,
) -> Call:
    """`first_class`: where the chunk begins in every tensor that has a class axis."""
    entry = bundle.stage(stage)
    specs = {one.name: one.shape for one in (*entry.inputs, *entry.outputs)}
    shapes = {name: tuple(axes[n] if isinstance(n, str) else n for n in specs[name]) for name in inputs}
    offsets = {}
    for name in (*inputs, *outputs) if first_class else ():
        if specs[name][0] == "classes":
            offsets[name] = first_class * math.prod(int(length) for length in specs[name][1:])
    return Call(site, stage, inputs, outputs, shapes, offsets)


def _output_shape(stage: StageEntry, name: str, call: Call, classes: int | None) -> Shape:
    """`classes`: of the whole buffer, where the call fills a chunk of it."""
    axes = {
        axis: length
        for spec in stage.inputs
        for axis, length in zip(spec.shape, call.shapes[spec.name], strict=True)
        if isinstance(axis, str)
    }
    axes["patches"] = (axes.get("height", 0) // PATCH) * (axes.get("width", 0) // PATCH)
    if classes is not None:
        axes["classes"] = classes
    shape = next(spec.shape for spec in stage.outputs if spec.name == name)
    return tuple(axes[axis] if isinstance(axis, str) else axis for axis in shape)


def check_memory(plan: FramePlan, activations: int, limit: int) -> None:
    """Raises EngineError, with the numbers, before anything is allocated."""
    needed = plan.nbytes() + activations
    if needed > limit:
        largest = sorted(plan.buffers, key=lambda one: -one.nbytes)[:3]
        parts = ", ".join(f"{one.name} {one.nbytes / 1e6:.0f} MB" for one in largest)
        size = f"{plan.size.classes} classes at {plan.size.width}x{plan.size.height}"
        raise EngineError(
            f"{size} need {needed / 1e6:.0f} MB on the GPU (engines {activations / 1e6:.0f} MB, {parts}, ...), "
            f"{limit / 1e6:.0f} MB may be used; name fewer classes or raise max_memory"
        )
