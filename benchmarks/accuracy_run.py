"""Every contestant segments every picture, in turn; the scores accumulate."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track

from benchmarks.accuracy_record import Score
from benchmarks.contestants import Name, Task, TorchModules, open_embedder
from benchmarks.datasets import Dataset, Sample
from benchmarks.segmentation_metrics import Boundaries, Confusion, Floats, SmallObjects, mean_of
from runtime.bundle import Bundle
from runtime.classes import check_shortlist
from runtime.cli import console
from runtime.engines import Backend, open_stage
from runtime.engines.base import Engine
from runtime.images import Pixels
from runtime.manifest import Precision
from runtime.pipeline import Pipeline, Views
from runtime.segmenter import TEXT_STAGE

LabelMap = npt.NDArray[Any]
TORCH = "torch"
SHOWN = 4  # pictures on the sheet


@dataclass
class Contestant:
    """One way to run the model, with the names already encoded."""

    side: str  # "torch" or the backend
    asked: Precision
    pipeline: Pipeline
    text: npt.NDArray[np.float32]
    shortlist: int = 0

    @property
    def views(self) -> Views:
        return self.pipeline.views

    @property
    def name(self) -> str:
        return f"{self.side} {self.asked}"

    @property
    def title(self) -> str:
        only = "" if self.views == "both" else f", {self.views} only"
        return f"{self.name}{only}" + (f", shortlist {self.shortlist}" if self.shortlist else "")


@dataclass
class Example:
    """One picture of the sheet, with the label maps of the first contestant and its last rival."""

    name: str
    image: Pixels
    truth: npt.NDArray[np.uint16]
    first: LabelMap
    last: LabelMap


@dataclass
class Findings:
    scores: list[Score]
    confusion: npt.NDArray[np.int64]  # of the first contestant
    examples: list[Example]
    titles: tuple[str, str]  # of the first contestant and its last rival
    small_objects: int


@dataclass
class Tally:
    """What one contestant has collected so far."""

    classes: int
    confusion: Confusion = field(init=False)
    small: SmallObjects = field(init=False)
    boundaries: Boundaries = field(init=False)
    seconds: list[float] = field(default_factory=list)
    refined: list[int] = field(default_factory=list)
    pixels: int = 0
    agreed: int = 0

    def __post_init__(self) -> None:
        self.confusion = Confusion(self.classes)
        self.small = SmallObjects(self.classes)
        self.boundaries = Boundaries(self.classes)

    def add(self, sample: Sample, labels: LabelMap, reference: LabelMap) -> None:
        self.confusion.add(sample.truth, labels)
        self.small.add(sample.truth, labels, sample.small)
        self.boundaries.add(sample.truth, labels)
        self.pixels += labels.size
        self.agreed += int(np.count_nonzero(labels == reference))


def open_contestants(
    bundle: Path,
    sides: Sequence[tuple[Backend, Precision]],
    views: Sequence[Views],
    with_torch: bool,
    weights: Path | None,
    threads: int,
    classes: tuple[str, ...],
    shortlists: Sequence[int] = (),
) -> list[Contestant]:
    """Torch first if at all, then the engines as asked for; each with all views, the engines with all shortlists too.

    All are in memory at once. Engines are shared between views, embeddings between precisions.

    Raises:
        BundleError, EngineError, InputError, WeightsError: as their names say.
    """
    opened, found = Bundle.open(bundle), []
    spec = opened.manifest.pipeline
    for shortlist in shortlists:
        check_shortlist(shortlist, spec)
    stages = [stage.name for stage in opened.manifest.stages if stage.name != TEXT_STAGE]
    runs: list[tuple[str, Backend, Precision]] = [(TORCH, sides[0][0], "fp32")] if with_torch else []
    texts: dict[str, npt.NDArray[np.float32]] = {}
    for side, backend, precision in [*runs, *((backend, backend, precision) for backend, precision in sides)]:
        task = Task(
            bundle=bundle,
            backend=backend,
            precision=precision,
            threads=threads,
            classes=classes,
            weights=weights,
            photo=Path(),
            warmup=0,
            frames=0,
        )
        if side not in texts:
            texts[side] = embed("torch" if side == TORCH else "engine", task, quietly=bool(texts))
        engines: dict[str, Engine]
        if side == TORCH:
            modules = TorchModules(opened.manifest, task)
            engines = {stage: modules.engine(stage) for stage in stages}
        else:
            engines = {stage: open_stage(opened, stage, backend, precision, threads) for stage in stages}
        for view, most in product(views, [0] if side == TORCH else [0, *shortlists]):
            pipeline = Pipeline(spec, engines, views=view, shortlist=most)
            found.append(Contestant(side, precision, pipeline, texts[side], most))
    return found


def embed(name: Name, task: Task, quietly: bool) -> npt.NDArray[np.float32]:
    """The warnings about a class name are the same for every contestant: once is enough."""
    with warnings.catch_warnings():
        if quietly:
            warnings.simplefilter("ignore", UserWarning)
        return open_embedder(name, task).embed(list(task.classes))


def evaluate(contestants: Sequence[Contestant], dataset: Dataset) -> Findings:
    """Agreement is with the first contestant that looks at the same views."""
    tallies = [Tally(len(dataset.classes)) for _ in contestants]
    references = [next(i for i, other in enumerate(contestants) if other.views == one.views) for one in contestants]
    rival = max(index for index, reference in enumerate(references) if reference == 0)  # same views as the first
    examples: list[Example] = []
    samples: Iterable[Sample] = track(
        dataset, "segmenting", dataset.identity.images, console=console, transient=True, disable=not console.is_terminal
    )
    turns = list(range(len(contestants)))
    for sample in samples:
        maps: dict[int, LabelMap] = {}
        for index in turns:
            result = contestants[index].pipeline(sample.image, contestants[index].text, scores=False)
            maps[index] = result.labels
            tallies[index].seconds.append(result.timings["total"] / 1e3)
            tallies[index].refined += [] if result.refined is None else [result.refined]
        turns.reverse()
        for index, (tally, reference) in enumerate(zip(tallies, references, strict=True)):
            tally.add(sample, maps[index], maps[reference])
        if len(examples) < SHOWN:
            examples.append(Example(sample.name, sample.image, sample.truth, maps[0], maps[rival]))
    scores = [
        score(contestant, tally, dataset, is_reference=reference == index, without=without)
        for index, (contestant, tally, reference, without) in enumerate(
            zip(contestants, tallies, references, without_shortlist(contestants, tallies), strict=True)
        )
    ]
    titles = contestants[0].title, contestants[rival].title
    return Findings(scores, tallies[0].confusion.counts, examples, titles, tallies[0].small.objects)


def without_shortlist(contestants: Sequence[Contestant], tallies: Sequence[Tally]) -> list[Tally]:
    """Of every contestant, the tally of the same engine and views that refines all classes."""
    full = {(one.name, one.views): tally for one, tally in zip(contestants, tallies, strict=True) if not one.shortlist}
    return [full[one.name, one.views] for one in contestants]


def score(contestant: Contestant, tally: Tally, dataset: Dataset, is_reference: bool, without: Tally) -> Score:
    ious = tally.confusion.ious()
    miou = {"all": mean_of(ious)} | {name: mean_of(ious, members) for name, members in dataset.groups.items()}
    if dataset.tabletop:
        miou["small objects"] = mean_of(tally.small.ious())
    return Score(
        contestant=contestant.name,
        views=contestant.views,
        shortlist=contestant.shortlist,
        precision={stage: engine.precision for stage, engine in contestant.pipeline.engines.items()},
        miou=miou,
        pixel_accuracy=tally.confusion.accuracy(),
        boundary_f=mean_of(tally.boundaries.scores()),
        agreement=None if is_reference else tally.agreed / tally.pixels,
        refined=statistics.mean(tally.refined) if tally.refined else None,
        speedup=statistics.median(map(truediv, without.seconds, tally.seconds)) if contestant.shortlist else None,
        seconds=statistics.median(tally.seconds),
        class_iou=by_class(dataset.classes, ious),
    )


def by_class(classes: Sequence[str], values: Floats) -> dict[str, float | None]:
    return {
        name: None if np.isnan(value) else float(value) for name, value in zip(classes, values.tolist(), strict=True)
    }
