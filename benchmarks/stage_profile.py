"""A frame launched stage by stage on a GPU: when each began, how long it took, and what it achieved."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.contestants import Task
from benchmarks.gpu_roofs import Roofs, measure_roofs
from runtime.bundle import Bundle
from runtime.engines.base import Array
from runtime.errors import InputError

if TYPE_CHECKING:
    from runtime.cuda.plan import FramePlan
    from runtime.cuda.timing import StageTime
    from runtime.manifest import PipelineSpec

ROUNDS, WARMUP = 20, 3
THROUGH_HOST = "stages on the device: not measured: host arrays pass between the stages of this pipeline"


class Site(BaseModel):
    """One engine call, kernel or copy of a frame; medians over frames.

    Attributes:
        start_ms: From the first event of the frame. Streams run beside each other, so sites overlap.
        flops: Of an engine's matrix products and convolutions; None where they are not counted.
        moved: Bytes that a kernel or copy must read and write at least; None for engines.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str
    stage: str
    start_ms: float
    milliseconds: float
    flops: int | None
    moved: int | None

    @property
    def tflops(self) -> float | None:
        """10^12 operations a second."""
        return None if self.flops is None else self.flops / self.milliseconds / 1e9

    @property
    def bandwidth(self) -> float | None:
        """GB/s."""
        return None if self.moved is None else self.moved / self.milliseconds / 1e6


class StageProfile(BaseModel):
    """Attributes:
    sites: In the order of their start; empty where they were not measured.
    roofs: What the same GPU reached at best in the same run.
    reason: Why there are no sites, or no FLOPs; "" if there are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sites: tuple[Site, ...]
    roofs: Roofs
    reason: str = ""

    @property
    def flops(self) -> int | None:
        """Of the whole frame."""
        counts = [site.flops for site in self.sites if site.flops is not None]
        return sum(counts) if counts else None


def profile_stages(task: Task) -> StageProfile:
    """Opens the bundle once more, alone on the GPU."""
    from runtime.cuda.plan import plan_frame

    roofs, bundle, photo = measure_roofs(), Bundle.open(task.bundle), np.load(task.photo)
    frames = stage_times(task, bundle, photo)
    if not frames:
        return StageProfile(sites=(), roofs=roofs, reason=THROUGH_HOST)
    plan = plan_frame(bundle, len(task.classes))
    counted = importlib.util.find_spec("onnx") is not None
    flops = site_flops(bundle, plan, task.precision) if counted else {}
    moved = site_bytes(bundle.manifest.pipeline, plan, photo.shape[:2])
    reason = "" if counted else "FLOPs: not counted: onnx is not installed"
    return StageProfile(sites=summarise(frames, flops, moved), roofs=roofs, reason=reason)


def stage_times(task: Task, bundle: Bundle, photo: Array) -> list[list[StageTime]]:
    """Of warm frames; none where a model passes through the host between two stages."""
    from runtime.cuda.pipeline import CudaPipeline
    from runtime.engines import open_pipeline
    from runtime.segmenter import TEXT_STAGE, text_embedder

    stages = [stage.name for stage in bundle.manifest.stages if stage.name != TEXT_STAGE]
    pipeline = open_pipeline(bundle, stages, task.backend, task.precision, task.threads, None)
    try:
        if not isinstance(pipeline, CudaPipeline):
            return []
        text = text_embedder(bundle, task.backend, task.threads, None).embed(task.classes)
        return [pipeline.stage_times(photo, text) for _ in range(WARMUP + ROUNDS)][WARMUP:]
    except InputError:
        return []
    finally:
        pipeline.close()


def site_flops(bundle: Bundle, plan: FramePlan, precision: str) -> dict[str, int]:
    """Of every engine call, from its graph at the shapes of this frame."""
    from export.graph_flops import flop_counts

    found: dict[str, int] = {}
    for call in plan.calls:
        graph = bundle.root / bundle.graph_name(call.stage, precision)
        found[call.site] = sum(flop_counts(graph, call.shapes).values())
    return found


def site_bytes(spec: PipelineSpec, plan: FramePlan, size: tuple[int, int]) -> dict[str, int]:
    """What kernels and copies must read and write at least, for a photo of this height and width.

    Engines are not here: arithmetic bounds them, they have FLOPs.
    """
    sizes = {buffer.name: buffer.nbytes for buffer in plan.buffers}
    pixels = size[0] * size[1]
    photo, labels = 3 * pixels, pixels if plan.classes <= 255 else 2 * pixels
    guidance = photo + sizes["sam image"] if "sam image" in sizes else 0  # a second launch on the same photo
    # Without refinement the cosines with the local half of the text are labelled.
    logits = sizes["logits"] if spec.refinement else sizes["correlation"] // 2
    return {
        "upload": photo,
        "preprocess": photo + sizes["image"] + sizes["crops"] + guidance,
        "lga_merge": sizes["features crops"] + sizes["features full"] + sizes["merged"],
        "upsample_argmax": logits + labels,
        "download": labels,
    }


def summarise(
    frames: Sequence[Sequence[StageTime]], flops: Mapping[str, int], moved: Mapping[str, int]
) -> tuple[Site, ...]:
    """Medians over the frames, by site."""
    sites = []
    for same in zip(*frames, strict=True):
        site = same[0].site
        sites.append(
            Site(
                site=site,
                stage=same[0].stage,
                start_ms=float(np.median([one.start_ms for one in same])),
                milliseconds=float(np.median([one.milliseconds for one in same])),
                flops=flops.get(site),
                moved=moved.get(site),
            )
        )
    return tuple(sorted(sites, key=lambda one: one.start_ms))
