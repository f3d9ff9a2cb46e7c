"""Every setting segments every frame of every clip, in turn; the scores accumulate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track

from benchmarks.clips import CLIPS, Clip
from benchmarks.scene_vocabulary import SURFACES
from benchmarks.segmentation_metrics import Confusion, mean_of
from benchmarks.video_record import VideoScore
from runtime.bundle import Bundle
from runtime.cli import console
from runtime.engines import Backend, open_pipeline
from runtime.geometry import Geometry
from runtime.images import Pixels
from runtime.manifest import Precision
from runtime.pipeline import FramePipeline, Pipeline
from runtime.reuse import CROPS, Reuse
from runtime.segmenter import TEXT_STAGE

LabelMap = npt.NDArray[Any]
BACKBONE = ("backbone crops", "backbone full")
PERIODS = (1, 2, 4, 8)
SETTINGS = tuple((period, crops) for crops in CROPS for period in PERIODS)  # the first reuses nothing


@dataclass
class Tally:
    """What one setting has collected over the clips of a kind."""

    classes: int
    confusion: Confusion = field(init=False)
    milliseconds: dict[tuple[int, bool], list[float]] = field(default_factory=dict)  # by crops and whole computed
    agreement: list[float] = field(default_factory=list)  # by frame
    object_pixels: int = 0
    object_agreed: int = 0
    backbone_ms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.confusion = Confusion(self.classes)

    def mean_ms(self) -> float:
        """Of a frame, those with the same work counted at their median: one that was disturbed counts as the others."""
        total = sum(len(times) * statistics.median(times) for times in self.milliseconds.values())
        return total / len(self.agreement)

    def computed(self) -> tuple[float, float]:
        """Crops and whole images in a frame."""
        work = [(crops, whole) for (crops, whole), times in self.milliseconds.items() for _ in times]
        return statistics.mean(crops for crops, _ in work), statistics.mean(whole for _, whole in work)


@dataclass
class Example:
    """A frame, and its labels when computed in full and with the setting that reuses most."""

    clip: str
    image: Pixels
    full: LabelMap
    reused: LabelMap


def open_pipelines(bundle: Bundle, backend: Backend, precision: Precision, threads: int) -> list[FramePipeline]:
    """One for each setting, as a pipeline keeps the features of one stream. On the host they share their engines."""
    stages = [stage.name for stage in bundle.manifest.stages if stage.name != TEXT_STAGE]

    def opened() -> FramePipeline:
        return open_pipeline(bundle, stages, backend, precision, threads, max_memory=None, shortlist=0)

    first = opened()
    if isinstance(first, Pipeline):
        return [Pipeline(first.spec, first.engines) for _ in SETTINGS]
    return [first, *(opened() for _ in SETTINGS[1:])]


def evaluate(
    pipelines: Sequence[FramePipeline],
    text: npt.NDArray[np.float32],
    geometry: Geometry,
    clips: int,
    frames: int,
    size: int,
    classes: int,
) -> tuple[list[VideoScore], list[Example]]:
    """Scores of every setting on every kind of clip, and an example of each kind.

    Args:
        pipelines: One for each of SETTINGS.
        text: (V, 2, C) embeddings of the Tabletop vocabulary.
        classes: How many of them are looked for: those of the clip, and others.
    """
    scores, examples = [], []
    for name, make in CLIPS.items():
        tallies = [Tally(len(text)) for _ in SETTINGS]
        seeds = track(range(clips), name, console=console, transient=True, disable=not console.is_terminal)
        for seed in seeds:
            clip = list(make(seed, frames, size))
            example = film(clip, pipelines, text, named(clip, len(text), classes), geometry, tallies)
            if seed == 0:
                examples.append(Example(name, *example))
        scores += [
            score(name, setting, tally, tallies[0], geometry) for setting, tally in zip(SETTINGS, tallies, strict=True)
        ]
    return scores, examples


def named(clip: Clip, vocabulary: int, count: int) -> npt.NDArray[np.uint8]:
    """`count` indices in ascending order: what the clip shows, and the first of all others."""
    shown = np.zeros(vocabulary, bool)
    for _, truth in clip:
        shown[truth] = True
    return np.sort(np.argsort(~shown, kind="stable")[:count]).astype(np.uint8)


def film(
    clip: Clip,
    pipelines: Sequence[FramePipeline],
    text: npt.NDArray[np.float32],
    chosen: npt.NDArray[np.uint8],
    geometry: Geometry,
    tallies: Sequence[Tally],
) -> tuple[Pixels, LabelMap, LabelMap]:
    """One clip through all pipelines, looking for the `chosen` of the vocabulary; returns its last frame with the
    first and the last setting's labels."""
    streams = [Reuse(geometry, reuse_global=period, crops=crops) for period, crops in SETTINGS]
    turns = list(range(len(SETTINGS)))
    names = text[chosen]
    for image, truth in clip:
        maps: dict[int, LabelMap] = {}
        for index in turns:
            reuse = streams[index] if index else None
            result = pipelines[index](image, names, scores=False, reuse=reuse)
            maps[index] = chosen[result.labels]
            last = streams[index].last
            work = (geometry.crops, True) if last is None else (len(last.crops), last.full)
            tallies[index].milliseconds.setdefault(work, []).append(result.timings["total"])
            tallies[index].backbone_ms.append(sum(result.timings.get(stage, 0) for stage in BACKBONE))
        turns.reverse()
        for index, tally in enumerate(tallies):
            same, objects = maps[index] == maps[0], truth >= len(SURFACES)
            tally.agreement.append(float(np.mean(same)))
            tally.object_pixels += int(np.count_nonzero(objects))
            tally.object_agreed += int(np.count_nonzero(same & objects))
            tally.confusion.add(truth, maps[index])
    return image, maps[0], maps[len(SETTINGS) - 1]


def score(clip: str, setting: tuple[int, str], tally: Tally, full: Tally, geometry: Geometry) -> VideoScore:
    crops, whole = tally.computed()
    return VideoScore(
        clip=clip,
        reuse_global=setting[0],
        crops=setting[1],
        speedup=full.mean_ms() / tally.mean_ms(),
        milliseconds=tally.mean_ms(),
        backbone_ms=statistics.median(tally.backbone_ms),
        agreement=statistics.mean(tally.agreement),
        worst=min(tally.agreement),
        on_objects=tally.object_agreed / tally.object_pixels if tally.object_pixels else None,
        miou=mean_of(tally.confusion.ious()),
        crops_computed=crops / geometry.crops,
        whole_computed=whole,
    )
