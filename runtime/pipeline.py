"""The order of the stages for one frame: a straight walk from a uint8 photo to a label map."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

import kernels
from kernels.checks import label_dtype
from runtime.classes import refined_classes
from runtime.engines.base import Array, Engine, Tensors
from runtime.manifest import PipelineSpec
from runtime.reuse import Refresh, Reuse
from runtime.rope import rope_tables

CORRELATION_CHUNK = 256  # classes compared with the features at once
CLASS_CHUNK = 32  # classes decoded at once: about 20 MB of activations each at 160x160

FloatArray = npt.NDArray[np.float32]
Views = Literal["both", "crops", "full"]


@dataclass(frozen=True)
class PipelineResult:
    """labels (H, W) uint8 or uint16; scores (H, W) float32 or None; timings in milliseconds by stage; how many classes
    went through refinement, None where that is not known on the host."""

    labels: Array
    scores: FloatArray | None
    timings: dict[str, float]
    refined: int | None = None


@dataclass(frozen=True)
class Kept:
    """Backbone features of a stream's last frame: of the crops (n, g*g, C), of the whole image (1, G*G, C)."""

    refresh: Refresh
    local: FloatArray | None
    whole: FloatArray | None


class HasPrecision(Protocol):
    @property
    def precision(self) -> str: ...


class FramePipeline(Protocol):
    """What the Segmenter asks of a device.

    Attributes:
        in_flight: Calls that may run at once.
        on_gpu: Whether photos may lie in GPU memory and labels stay there (`on_device`).
    """

    in_flight: int
    on_gpu: bool

    @property
    def engines(self) -> Mapping[str, HasPrecision]: ...

    def prepare(self, classes: int) -> None:
        """Takes what frames with so many classes need, before the first of them."""
        ...

    def __call__(
        self, photo: Any, text: FloatArray, *, color: str = "rgb", scores: bool = True, reuse: Reuse | None = None
    ) -> PipelineResult: ...

    def close(self) -> None: ...


class Pipeline:
    """Runs the stages of one model.

    Args:
        spec: Geometry and the choices that the order depends on.
        engines: One for each stage of `export.stages.stage_table`, but the text encoder.
        views: What the backbone looks at: the crops and the whole image, merged (local-global aggregation, the
            model as published), or one of them alone, which is for measurements.
        shortlist: Only classes among this many with the largest cosine at some pixel are refined; 0: all.

    Source: MODEL_SPEC sections 0, (f) and (g); golden/README "Order of operations".
    """

    in_flight = 1
    on_gpu = False

    def __init__(
        self, spec: PipelineSpec, engines: Mapping[str, Engine], *, views: Views = "both", shortlist: int = 0
    ) -> None:
        self.spec = spec
        self.engines = engines
        self.views = views
        self.shortlist = shortlist
        self._kept: Kept | None = None
        geometry = spec.geometry
        self._crop_tables = self._tables(geometry.crop_grid)
        self._full_tables = self._tables(geometry.grid)

    def _tables(self, grid: int) -> dict[str, FloatArray]:
        sin, cos = rope_tables(self.spec.rope_periods, (grid, grid), self.spec.prefix_tokens)
        return {"rope_sin": sin, "rope_cos": cos}

    def __call__(
        self, photo: Array, text: FloatArray, *, color: str = "rgb", scores: bool = True, reuse: Reuse | None = None
    ) -> PipelineResult:
        """photo (H, W, 3) uint8 of any size, text (K, 2, C) float32 unit halves -> label map of the photo's size.

        Scores are the sigmoid of the winning logit, or the winning cosine in the training-free pipeline. `reuse`
        belongs to a stream and says which backbone features of its last frame serve again; features are kept for
        one stream, that of the last call with `reuse`.
        """
        timer = StageTimer()
        geometry = self.spec.geometry
        with timer("preprocess"):
            crop = None if self.views == "full" else geometry.crop_size
            image, crops = kernels.preprocess(
                photo, size=geometry.image_size, crop=crop, stride=geometry.stride, color=color
            )
            last = None if self._kept is None else self._kept.refresh
            refresh = None if reuse is None else reuse.refresh(photo, color, last)
        features = self._features(image, crops, refresh, timer)
        with timer("correlation"):
            cosines = self._correlate(features, text)
        if self.spec.refinement:
            sam_image = self._sam_image(photo, image, color)
            kept = refined_classes(cosines, self.spec.pad_len, self.shortlist)
            logits = self._refine(sam_image, cosines, text, kept, timer)
        else:
            kept = None
            logits = cosines[:, 1] if self.spec.training_free_text == "local" else cosines.mean(axis=1)
        with timer("upsample_argmax"):
            labels, winning = upsample_argmax(logits, photo.shape[:2], scores)
            if kept is not None:
                labels = kept.astype(label_dtype(len(text)))[labels]
            if winning is not None and self.spec.refinement:
                winning = sigmoid(winning)
        return PipelineResult(labels, winning, timer.finish(), len(logits) if self.spec.refinement else None)

    def prepare(self, classes: int) -> None:
        """Host engines take any number as it comes."""

    def close(self) -> None:
        self.engines, self._kept = {}, None

    def _correlate(self, features: FloatArray, text: FloatArray) -> FloatArray:
        """Cosines (K, 2, G, G). Each class is on its own, so long lists come in parts: built engines take no more."""
        parts = [
            self._run("correlation", features=features, text=text[start : start + CORRELATION_CHUNK])["correlation"]
            for start in range(0, len(text), CORRELATION_CHUNK)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

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

    def _backbone(
        self, image: FloatArray, crops: FloatArray | None, refresh: Refresh | None, timer: StageTimer
    ) -> tuple[FloatArray | None, FloatArray | None]:
        """Features of the crops (n, g*g, C) and of the whole image (1, G*G, C), as far as they are looked at."""
        kept, local, whole = None, None, None
        if refresh is not None:  # a frame that fails leaves nothing behind that is older than its stream thinks
            kept, self._kept = self._kept, None
        if crops is not None:
            with timer("backbone crops"):
                old = None if kept is None else kept.local
                local = self._crop_features(crops, range(len(crops)) if refresh is None else refresh.crops, old)
        if self.views != "crops":
            with timer("backbone full"):
                if kept is not None and refresh is not None and not refresh.full:
                    whole = kept.whole
                else:
                    whole = self._run("backbone", image=image, **self._full_tables)["features"]
        if refresh is not None:
            self._kept = Kept(refresh, local, whole)
        return local, whole

    def _crop_features(self, crops: FloatArray, anew: Sequence[int], kept: FloatArray | None) -> FloatArray:
        """(n, g*g, C): those of `anew` computed, the others as kept."""
        if kept is None or len(anew) == len(crops):
            every: FloatArray = self._run("backbone", image=crops, **self._crop_tables)["features"]
            return every
        features = kept
        if anew:
            features = kept.copy()
            features[list(anew)] = self._run("backbone", image=crops[list(anew)], **self._crop_tables)["features"]
        return features

    def _features(
        self, image: FloatArray, crops: FloatArray | None, refresh: Refresh | None, timer: StageTimer
    ) -> FloatArray:
        """Refined patch features of the whole image, (G*G, C)."""
        early = self.spec.early_refinement
        local, whole = self._backbone(image, crops, refresh, timer)
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
        # Filled in place: chunks joined at the end would be in memory twice.
        logits = np.empty((len(class_features), *guidance["guidance2"].shape[2:]), np.float32)
        for start in range(0, len(class_features), CLASS_CHUNK):
            chunk = slice(start, start + CLASS_CHUNK)
            logits[chunk] = self._run("decoder", class_features=class_features[chunk], **maps)["logits"]
        return logits

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
