"""The whole frame in torch, with torch's own operations in place of our kernels and every tensor on one device.

This is what the engines are compared with on a GPU. It fits behind a `Segmenter`, as their pipelines do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from runtime.classes import select_classes
from runtime.geometry import Geometry
from runtime.manifest import PipelineSpec
from runtime.pipeline import CLASS_CHUNK, PipelineResult
from runtime.rope import rope_tables

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TorchStage:
    """A module, eager or compiled, and what it computes in."""

    module: Callable[..., Any]
    precision: str


class TorchFrame:
    """Same call and result as `runtime.pipeline.Pipeline`, which says what the stages mean.

    Args:
        stages: Of the stage table, but the text encoder; on `device`, in `dtype`.
    """

    in_flight = 1
    on_gpu = False  # photos come from the host's memory and labels go there

    def __init__(
        self, spec: PipelineSpec, stages: Mapping[str, TorchStage], device: str, dtype: torch.dtype = torch.float32
    ) -> None:
        self._spec, self._device, self._dtype = spec, device, dtype
        self.engines = dict(stages)
        self._crop_tables = self._tables(spec.geometry.crop_grid)
        self._full_tables = self._tables(spec.geometry.grid)
        self._covered = coverage(spec.geometry).to(device, dtype)
        self._mean, self._std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
        self._text: tuple[Any, Tensor] | None = None

    def prepare(self, classes: int) -> None:
        """Nothing: warm-up frames do it."""

    def _tables(self, grid: int) -> dict[str, Tensor]:
        tables = rope_tables(self._spec.rope_periods, (grid, grid), self._spec.prefix_tokens)
        sin, cos = (torch.from_numpy(table).to(self._device, self._dtype) for table in tables)
        return {"rope_sin": sin, "rope_cos": cos}

    def __call__(
        self, photo: NDArray[Any], text: NDArray[Any], *, color: str = "rgb", scores: bool = True, reuse: Any = None
    ) -> PipelineResult:
        """`reuse` is of no use here: every frame is computed whole."""
        watch = Watch(self._device)
        with torch.inference_mode():
            pixels = torch.from_numpy(photo).to(self._device)
            logits, kept = self._logits(pixels.flip(-1) if color == "bgr" else pixels, self._on_device(text))
            upsampled = F.interpolate(logits[None], photo.shape[:2], mode="bilinear")[0]
            winning, labels = upsampled.max(0) if scores else (None, upsampled.argmax(0))
            if kept is not None:
                labels = kept[labels]
            if winning is not None and self._spec.refinement:
                winning = winning.float().sigmoid()
            found = labels.to(torch.uint8 if len(text) <= 255 else torch.uint16).cpu().numpy()
            best = None if winning is None else winning.float().cpu().numpy()
        return PipelineResult(found, best, watch.stop())

    def close(self) -> None:
        self.engines = {}

    def _on_device(self, text: NDArray[Any]) -> Tensor:
        if self._text is None or self._text[0] is not text:
            self._text = text, torch.from_numpy(text).to(self._device, self._dtype)
        return self._text[1]

    def _logits(self, pixels: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """(K, h, w) of the classes that are refined, and their indices where these are not all."""
        image = self._resize(pixels, self._spec.geometry.image_size)
        cosines = self._run("correlation", features=self._features(image), text=text)
        if not self._spec.refinement:
            return cosines[:, 1] if self._spec.training_free_text == "local" else cosines.mean(1), None
        chosen = select_classes(cosines.float().cpu().numpy(), self._spec.pad_len) if self._must_choose(text) else None
        kept = None if chosen is None else torch.from_numpy(chosen).to(self._device)
        if kept is not None:
            cosines, text = cosines[kept], text[kept]
        same_size = self._spec.sam_size == self._spec.geometry.image_size
        guidance = self._run("sam_encoder", image=image if same_size else self._resize(pixels, self._spec.sam_size))
        present = torch.ones(len(text), device=self._device, dtype=self._dtype)
        refined = self._run("refinement", correlation=cosines, guidance0=guidance[0], text=text, present=present)
        maps = {"guidance1": guidance[1], "guidance2": guidance[2]}
        chunks = [self._run("decoder", class_features=chunk, **maps) for chunk in refined.split(CLASS_CHUNK)]
        return torch.cat(chunks), kept

    def _must_choose(self, text: Tensor) -> bool:
        return 0 < self._spec.pad_len < len(text)

    def _resize(self, pixels: Tensor, size: int) -> Tensor:
        """(1, 3, size, size), normalised."""
        resized = F.interpolate(pixels.permute(2, 0, 1)[None].float(), (size, size), mode="bilinear")
        return ((resized / 255 - self._mean) / self._std).to(self._dtype)

    def _features(self, image: Tensor) -> Tensor:
        """(G*G, C) of the whole image."""
        geometry, early = self._spec.geometry, self._spec.early_refinement
        crop = geometry.crop_size
        crops = torch.cat(
            [image[:, :, y : y + crop, x : x + crop] for y, x in corners(geometry.image_size, crop, geometry.stride)]
        )
        local = self._run("backbone", image=crops, **self._crop_tables)
        whole = self._run("backbone", image=image, **self._full_tables)
        if early == "before_merge":
            local = self._run("anyup_crop", image=crops, features=local)
            whole = self._run("anyup", image=image, features=whole)
        merged = self._merge(local, whole[0])
        return self._run("anyup", image=image, features=merged[None])[0] if early == "after_merge" else merged

    def _merge(self, local: Tensor, whole: Tensor) -> Tensor:
        """The mean of the whole image's features and of the crops' mean, (G*G, C)."""
        geometry = self._spec.geometry
        grid, side = geometry.grid, geometry.crop_grid
        total = torch.zeros(grid, grid, whole.shape[-1], device=self._device, dtype=self._dtype)
        places = corners(grid, side, geometry.token_stride)
        for tile, (y, x) in zip(local.unflatten(1, (side, side)), places, strict=True):
            total[y : y + side, x : x + side] += tile
        return ((total / self._covered).flatten(0, 1) + whole) / 2

    def _run(self, stage: str, **inputs: Tensor) -> Any:
        return self.engines[stage].module(**inputs)


def corners(side: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """Top left corners of the crops, row by row."""
    starts = range(0, side - crop + 1, stride)
    return [(y, x) for y in starts for x in starts]


def coverage(geometry: Geometry) -> Tensor:
    """(G, G, 1): how many crops see a patch."""
    covered = torch.zeros(geometry.grid, geometry.grid, 1)
    for y, x in corners(geometry.grid, geometry.crop_grid, geometry.token_stride):
        covered[y : y + geometry.crop_grid, x : x + geometry.crop_grid] += 1
    return covered


class Watch:
    """Milliseconds of wall time and, on a GPU, between two events around all of the device's work."""

    def __init__(self, device: str) -> None:
        self._start = time.perf_counter()
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.startswith("cuda") else []
        for event in self._events[:1]:
            event.record()

    def stop(self) -> dict[str, float]:
        found = {}
        if self._events:
            begin, end = self._events
            end.record()
            torch.cuda.synchronize()
            found["device"] = float(begin.elapsed_time(end))
        return found | {"total": (time.perf_counter() - self._start) * 1e3}
