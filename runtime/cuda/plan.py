"""Every buffer of a frame, from the stage table, before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runtime.bundle import Bundle
from runtime.manifest import PipelineSpec
from runtime.pipeline import CLASS_CHUNK
from runtime.profiles import PATCH, output_shapes

Shape = tuple[int, ...]
FLOAT = 4  # bytes: what lies between engines is float32


@dataclass(frozen=True)
class Planned:
    """A float32 buffer on the device."""

    name: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * FLOAT


@dataclass(frozen=True)
class Call:
    """One place where an engine is called: its inputs and outputs are buffers, by their names in the plan.

    `offsets` are elements from the start of a buffer, for a chunk of classes or one crop. Calls with the same
    `context` run one after the other and share an execution context.
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
    """`single_crops` are the backbone's calls for one crop each, where only some of them are looked at again."""

    classes: int
    buffers: tuple[Planned, ...]
    calls: tuple[Call, ...]
    single_crops: tuple[Call, ...]

    def nbytes(self) -> int:
        """On the device."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def describe(self, activations: int) -> str:
        """The memory that is about to be taken, in one line."""
        largest = sorted(self.buffers, key=lambda one: -one.nbytes)[:3]
        parts = ", ".join(f"{one.name} {one.nbytes / 1e6:.0f} MB" for one in largest)
        total = (self.nbytes() + activations) / 1e6
        return (
            f"{self.classes} classes need {total:.0f} MB on the GPU (engines {activations / 1e6:.0f} MB, {parts}, ...)"
        )


def needs_host(spec: PipelineSpec, classes: int, shortlist: int = 0) -> bool:
    """Whether something between two stages is computed in NumPy only: which classes are refined, where there are more
    than the head takes or a shortlist is; AnyUp on each view; the mean over both text halves."""
    chosen = spec.refinement and (0 < spec.pad_len < classes or 0 < shortlist < classes)
    mean = not spec.refinement and spec.training_free_text == "mean"
    return chosen or mean or spec.early_refinement == "before_merge"


def plan_frame(bundle: Bundle, classes: int) -> FramePlan:
    """The buffers and calls between the preprocessed image and the logits, of a model that does not need the host in
    between. They depend on the (filled-up) number of classes, not on the photo."""
    spec = bundle.manifest.pipeline
    geometry = spec.geometry
    side, crop, crops = geometry.image_size, geometry.crop_size, geometry.crops
    grid, channels = geometry.grid, int(bundle.stage("correlation").inputs[1].shape[-1])
    buffers = [
        Planned("image", (1, 3, side, side)),
        Planned("crops", (crops, 3, crop, crop)),
        Planned("merged", (1, grid * grid, channels)),
        Planned("text", (classes, 2, channels)),
        Planned("present", (classes,)),
    ]
    if spec.refinement and spec.sam_size != side:
        buffers.append(Planned("sam image", (1, 3, spec.sam_size, spec.sam_size)))
    for name, length in (("crops", geometry.crop_grid), ("full", grid)):
        tokens = spec.prefix_tokens + length * length
        width = next(one.shape[-1] for one in bundle.stage("backbone").inputs if one.name == "rope_sin")
        buffers += [Planned(f"{table} {name}", (tokens, int(width))) for table in ("rope_sin", "rope_cos")]
    calls = tuple(_calls(bundle, classes))
    known = {buffer.name for buffer in buffers}
    for call in calls:
        for stage_output, name in call.outputs.items():
            if name not in known:
                known.add(name)
                whole = {"classes": classes} if call.stage == "decoder" else {}
                shapes = output_shapes(bundle.stage(call.stage), call.shapes, whole)
                buffers.append(Planned(name, shapes[stage_output]))
    singles = tuple(_backbone(bundle, "crops", f"backbone crop {i}", 1, i) for i in range(crops))
    return FramePlan(classes, tuple(buffers), calls, singles)


def _calls(bundle: Bundle, classes: int) -> Iterable[Call]:
    spec = bundle.manifest.pipeline
    yield _backbone(bundle, "crops", "backbone crops", spec.geometry.crops)
    yield _backbone(bundle, "full", "backbone full", 1)
    features = "merged"
    if spec.early_refinement == "after_merge":
        features = "refined"
        yield _call(bundle, "anyup", "anyup", {"image": "image", "features": "merged"}, {"refined": features}, {})
    axes = {"classes": classes}
    inputs = {"features": features, "text": "text"}
    yield _call(bundle, "correlation", "correlation", inputs, {"correlation": "correlation"}, axes)
    if not spec.refinement:
        return
    image = "image" if spec.sam_size == spec.geometry.image_size else "sam image"
    guidance = {name: name for name in ("guidance0", "guidance1", "guidance2")}
    yield _call(bundle, "sam_encoder", "sam_encoder", {"image": image}, guidance, {})
    inputs = {name: name for name in ("correlation", "guidance0", "text", "present")}
    yield _call(bundle, "refinement", "refinement", inputs, {"class_features": "class_features"}, axes)
    for start in range(0, classes, CLASS_CHUNK):
        chunk = {"classes": min(CLASS_CHUNK, classes - start)}
        inputs = {name: name for name in ("class_features", "guidance1", "guidance2")}
        yield _call(bundle, f"decoder {start}", "decoder", inputs, {"logits": "logits"}, chunk, "classes", start)


def _backbone(bundle: Bundle, view: str, site: str, batch: int, first: int = 0) -> Call:
    """The crops from `first` on, or the whole image."""
    geometry = bundle.manifest.pipeline.geometry
    side = geometry.crop_size if view == "crops" else geometry.image_size
    grid = side // PATCH
    tokens = bundle.manifest.pipeline.prefix_tokens + grid**2
    axes = {"batch": batch, "height": side, "width": side, "tokens": tokens, "patches": grid**2}
    inputs = {"image": "crops" if view == "crops" else "image"}
    inputs |= {table: f"{table} {view}" for table in ("rope_sin", "rope_cos")}
    return _call(bundle, site, "backbone", inputs, {"features": f"features {view}"}, axes, "batch", first)


def _call(
    bundle: Bundle,
    site: str,
    stage: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    axes: Mapping[str, int],
    cut: str = "",
    first: int = 0,
) -> Call:
    """`first`: where the call begins along the axis `cut`, in every tensor whose first axis that is."""
    entry = bundle.stage(stage)
    specs = {one.name: one.shape for one in (*entry.inputs, *entry.outputs)}
    shapes = {name: tuple(axes[n] if isinstance(n, str) else n for n in specs[name]) for name in inputs}
    offsets = {}
    for name in (*inputs, *outputs) if first else ():
        if specs[name][0] == cut:
            offsets[name] = first * math.prod(axes[n] if isinstance(n, str) else n for n in specs[name][1:])
    return Call(site, stage, inputs, outputs, shapes, offsets)
