"""The order of the stages for one frame: a straight walk from a uint8 photo to a label map."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

import kernels
from runtime.classes import select_classes
from runtime.engines.base import Array, Engine, Tensors
from runtime.manifest import PipelineSpec
from runtime.rope import rope_tables

CLASS_CHUNK = 32  # classes decoded at once: about 20 MB of activations each at 160x160

FloatArray = npt.NDArray[np.float32]
Views = Literal["both", "crops", "full"]


@dataclass(frozen=True)
class PipelineResult:
    """labels (H, W) uint8 or uint16; scores (H, W) float32 or None; timings in milliseconds by stage."""

    labels: Array
    scores: FloatArray | None
    timings: dict[str, float]


class HasPrecision(Protocol):
    @property
    def precision(self) -> str: ...


class FramePipeline(Protocol):
    """What the Segmenter asks of a device."""

    @property
    def engines(self) -> Mapping[str, HasPrecision]: ...

    def __call__(
        self, photo: Array, text: FloatArray, *, color: str = "rgb", scores: bool = True
    ) -> PipelineResult: ...

    def close(self) -> None: ...


class Pipeline:
    """Runs the stages of one model.

    Args:
        spec: Geometry and the choices that the order depends on.
        engines: One for each stage of `export.stages.stage_table`, but the text encoder.
        views: What the backbone looks at: the crops and the whole image, merged (local-global aggregation, the
            model as published), or one of them alone, which is for measurements.

    Source: MODEL_SPEC sections 0, (f) and (g); golden/README "Order of operations".
    """

    def __init__(self, spec: PipelineSpec, engines: Mapping[str, Engine], *, views: Views = "both") -> None:
        self.spec = spec
        self.engines = engines
        self.views = views
        geometry = spec.geometry
        self._crop_tables = self._tables(geometry.crop_grid)
        self._full_tables = self._tables(geometry.grid)

    def _tables(self, grid: int) -> dict[str, FloatArray]:
        sin, cos = rope_tables(self.spec.rope_periods, (grid, grid), self.spec.prefix_tokens)
        return {"rope_sin": sin, "rope_cos": cos}

    def __call__(self, photo: Array, text: FloatArray, *, color: str = "rgb", scores: bool = True) -> PipelineResult:
        """photo (H, W, 3) uint8 of any size, text (K, 2, C) float32 unit halves -> label map of the photo's size.

        Scores are the sigmoid of the winning logit, or the winning cosine in the training-free pipeline.
        """
        timer = StageTimer()
        geometry = self.spec.geometry
        with timer("preprocess"):
            crop = None if self.views == "full" else geometry.crop_size
            image, crops = kernels.preprocess(
                photo, size=geometry.image_size, crop=crop, stride=geometry.stride, color=color
            )
        features = self._features(image, crops, timer)
        with timer("correlation"):
            cosines = self._run("correlation", features=features, text=text)["correlation"]
        if self.spec.refinement:
            sam_image = self._sam_image(photo, image, color)
            kept = select_classes(cosines, self.spec.pad_len)
            logits = self._refine(sam_image, cosines, text, kept, timer)
        else:
            kept = None
            logits = cosines[:, 1] if self.spec.training_free_text == "local" else cosines.mean(axis=1)
        with timer("upsample_argmax"):
            labels, winning = upsample_argmax(logits, photo.shape[:2], scores)
            if kept is not None:
                labels = kept.astype(np.uint8 if len(text) <= 255 else np.uint16)[labels]
            if winning is not None and self.spec.refinement:
                winning = sigmoid(winning)
        return PipelineResult(labels, winning, timer.finish())

    def close(self) -> None:
        self.engines = {}

    def _refine(
        self,
        image: FloatArray,
        cosines: FloatArray,
        text: FloatArray,
        kept: npt.NDArray[np.int64] | None,
        timer: StageTimer,
    ) -> FloatArray:
        """Logits (K, 4G, 4G) of the kept classes."""
        if kept is not None:
            cosines, text = cosines[kept], text[kept]
        with timer("sam_encoder"):
            guidance = self._run("sam_encoder", image=image)
        with timer("refinement"):
            present = np.ones(len(text), np.float32)
            near = {"guidance0": guidance["guidance0"]}
            refined = self._run("refinement", correlation=cosines, text=text, present=present, **near)
        with timer("decoder"):
            return self._decode(refined["class_features"], guidance)

    def _features(self, image: FloatArray, crops: FloatArray | None, timer: StageTimer) -> FloatArray:
        """Refined patch features of the whole image, (G*G, C)."""
        early, local, whole = self.spec.early_refinement, None, None
        if crops is not None:
            with timer("backbone crops"):
                local = self._run("backbone", image=crops, **self._crop_tables)["features"]
        if self.views != "crops":
            with timer("backbone full"):
                whole = self._run("backbone", image=image, **self._full_tables)["features"]
        if early == "before_merge":
            with timer("anyup"):
                if crops is not None and local is not None:
                    local = self._run("anyup_crop", image=crops, features=local)["refined"]
                if whole is not None:
                    whole = self._run("anyup", image=image, features=whole)["refined"]
        with timer("lga_merge"):
            stride = self.spec.geometry.token_stride
            merged: FloatArray = kernels.lga_merge(local, None if whole is None else whole[0], stride=stride)
        if early == "after_merge":
            with timer("anyup"):
                merged = self._run("anyup", image=image, features=merged[None])["refined"][0]
        return merged

    def _sam_image(self, photo: Array, image: FloatArray, color: str) -> FloatArray:
        """SAM's normalisation is ImageNet's times 255, so the same tensor serves it at the same size."""
        size = self.spec.sam_size
        if size == self.spec.geometry.image_size:
            return image
        own: FloatArray = kernels.preprocess(photo, size=size, crop=None, stride=size, color=color)[0]
        return own

    def _decode(self, class_features: FloatArray, guidance: Tensors) -> FloatArray:
        """Class features (K, D, G, G) -> logits (K, 4G, 4G), a chunk of classes at a time."""
        maps = {name: guidance[name] for name in ("guidance1", "guidance2")}
        chunks = [
            self._run("decoder", class_features=class_features[start : start + CLASS_CHUNK], **maps)["logits"]
            for start in range(0, len(class_features), CLASS_CHUNK)
        ]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def _run(self, stage: str, **inputs: Array) -> dict[str, Array]:
        return self.engines[stage](inputs)


def upsample_argmax(logits: FloatArray, size: tuple[int, ...], scores: bool) -> tuple[Array, FloatArray | None]:
    """(K, h, w) -> labels and winning logits at (H, W)."""
    logits, height_width = np.ascontiguousarray(logits), (size[0], size[1])
    if scores:
        labels, winning = kernels.upsample_argmax(logits, size=height_width, scores=True)
        return labels, winning
    return kernels.upsample_argmax(logits, size=height_width), None


def sigmoid(x: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):  # exp overflows to inf, and 1/inf is the right answer
        return np.float32(1) / (np.float32(1) + np.exp(-x))


class StageTimer:
    """Wall time of each stage in milliseconds, and of the whole."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.timings: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[stage] = (time.perf_counter() - start) * 1e3

    def finish(self) -> dict[str, float]:
        return self.timings | {"total": (time.perf_counter() - self._start) * 1e3}
