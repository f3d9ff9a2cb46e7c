"""The shapes that an engine is built for. Image sizes are fixed; crops and classes vary within a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from runtime.errors import InputError
from runtime.manifest import PipelineSpec, Profile, StageEntry
from runtime.pipeline import CLASS_CHUNK

TEXT_BATCH = 64  # prompts encoded at once
PATCH = 16
# Classes of one profile: fewest, those it is tuned for, most. A wide profile is slow at its ends.
BUCKETS = ((1, 20, 32), (33, 150, 256), (257, 847, 1024), (1025, 2048, 4096))
MOST_CLASSES = 256
Range = tuple[int, int, int]


def stage_profiles(spec: PipelineSpec, stage: StageEntry, most_classes: int = MOST_CLASSES) -> tuple[Profile, ...]:
    """One profile for each size of the backbone's image, and for each range of class counts.

    Raises:
        InputError: `most_classes` is less than 1 or beyond the last bucket.
    """
    axes = {axis for value in stage.inputs for axis in value.shape if isinstance(axis, str)}
    if stage.name == "backbone":
        geometry = spec.geometry
        ranges = [
            views(spec, geometry.crop_size, geometry.crops),
            views(spec, geometry.image_size, 1),
        ]
    elif stage.name == "text_encoder":
        ranges = [{"classes": (1, TEXT_BATCH // 4, TEXT_BATCH)}]
    elif stage.name == "decoder":
        ranges = [{"classes": (1, CLASS_CHUNK, CLASS_CHUNK)}]
    elif "classes" in axes:
        padded = stage.name == "refinement" and spec.pad_len
        most = spec.pad_len if padded else class_bucket(most_classes)
        ranges = [{"classes": bucket} for bucket in buckets(most)]
    else:
        ranges = [{}]
    return tuple(profile(stage, bound) for bound in ranges)


def views(spec: PipelineSpec, side: int, most: int) -> dict[str, Range]:
    tokens = spec.prefix_tokens + (side // PATCH) ** 2
    fixed = {"height": side, "width": side, "tokens": tokens}
    return {"batch": (1, most, most)} | {axis: (length,) * 3 for axis, length in fixed.items()}


def buckets(most: int) -> list[Range]:
    """The ranges up to `most`, which ends the last one."""
    if not 1 <= most <= BUCKETS[-1][-1]:
        raise InputError(f"--most-classes is {most}; expected 1 to {BUCKETS[-1][-1]}")
    used = [bucket for bucket in BUCKETS if bucket[0] <= most]
    return [(low, min(tuned, most), min(high, most)) for low, tuned, high in used]


def class_bucket(classes: int, most: int = 0) -> int:
    """How many classes a batch is filled up to, so that lists of similar length share buffers and a graph.

    Args:
        most: The most that the head takes; 0: no limit.
    """
    step = 8 if classes <= 32 else 32
    filled = -(-classes // step) * step
    return min(filled, most) if classes <= most else filled


def profile(stage: StageEntry, ranges: Mapping[str, Range]) -> Profile:
    def shape(axes: Sequence[int | str], which: int) -> tuple[int, ...]:
        return tuple(ranges[axis][which] if isinstance(axis, str) else axis for axis in axes)

    return Profile(
        shapes={
            value.name: (shape(value.shape, 0), shape(value.shape, 1), shape(value.shape, 2)) for value in stage.inputs
        }
    )


def output_shapes(
    stage: StageEntry, shapes: Mapping[str, Sequence[int]], whole: Mapping[str, int] = MappingProxyType({})
) -> dict[str, tuple[int, ...]]:
    """Of every output, for inputs of these shapes. `whole`: axes of which the inputs are a part only."""
    axes = {
        axis: length
        for one in stage.inputs
        for axis, length in zip(one.shape, shapes[one.name], strict=True)
        if isinstance(axis, str)
    }
    axes["patches"] = (axes.get("height", 0) // PATCH) * (axes.get("width", 0) // PATCH)
    axes |= whole
    return {
        one.name: tuple(axes[axis] if isinstance(axis, str) else axis for axis in one.shape) for one in stage.outputs
    }


def accepts(profile: Profile, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether inputs of these shapes lie within the profile."""
    return all(
        len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        for name, shape in shapes.items()
        for low, _, high in [profile.shapes[name]]
    )
