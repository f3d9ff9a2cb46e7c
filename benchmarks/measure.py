"""Warm timings: all contestants in one process, frame by frame in turn, so that fast and slow spells meet both."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.contestants import Name, Task, open_contestant
from runtime.errors import ParityError

if TYPE_CHECKING:
    from runtime.segmenter import Segmenter

# Engine libraries let their idle threads spin for a millisecond or two; the next contestant must not pay for it.
PAUSE_SECONDS = 0.02

# Below these shares of equally labelled pixels the two are not the same model.
LEAST_AGREEMENT = {"fp32": 0.99, "fp16": 0.8, "bf16": 0.7}


class Frame(BaseModel):
    """One warm frame: milliseconds by stage, and when it began on the run's clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    contestant: Name
    round: int
    start_s: float
    stages: dict[str, float]


class Spread(BaseModel):
    """Milliseconds over the warm frames."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: float
    p90: float
    p99: float
    mean: float


class Interleaved(BaseModel):
    """Attributes:
    agreement: Share of pixels that the engine labels as torch does; None without torch.
    precision: What each stage of the engine computes in, read back from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    agreement: float | None
    precision: dict[str, str]
    frames: tuple[Frame, ...]


def measure_interleaved(names: Sequence[Name], task: Task) -> Interleaved:
    """Opens every contestant, checks that they agree, then lets them take turns.

    Raises:
        ParityError: engine and torch label too many pixels differently to be the same model.
    """
    photo = np.load(task.photo)
    with ExitStack() as stack:
        contestants = {name: stack.enter_context(open_contestant(name, task)) for name in names}
        for segmenter in contestants.values():
            segmenter.set_classes(list(task.classes))
        labels = {name: segmenter(photo, scores=False).labels for name, segmenter in contestants.items()}
        agreement = float(np.mean(labels["engine"] == labels["torch"])) if "torch" in labels else None
        check_agreement(agreement, task)
        return Interleaved(
            agreement=agreement,
            precision=contestants["engine"].precision,
            frames=take_turns(contestants, photo, task.warmup, task.frames),
        )


def check_agreement(agreement: float | None, task: Task) -> None:
    least = LEAST_AGREEMENT[task.precision]
    if agreement is not None and agreement < least:
        raise ParityError(
            f"{task.backend} {task.precision} and torch agree on {agreement:.1%} of the labels, expected at least "
            f"{least:.0%}: these are two different models, so nothing was timed; build the bundle again"
        )


def take_turns(contestants: Mapping[Name, Segmenter], photo: np.ndarray, warmup: int, frames: int) -> tuple[Frame, ...]:
    """`frames` rounds after `warmup` unrecorded ones. Who begins changes from round to round."""
    found, order = [], list(contestants)
    gc.collect()
    clock = time.perf_counter()
    for turn in range(-warmup, frames):
        for name in order:
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter() - clock
            timings = contestants[name](photo, scores=False).timings
            if turn >= 0:
                found.append(Frame(contestant=name, round=turn, start_s=start, stages=timings))
        order.reverse()
    return tuple(found)


def spreads(frames: Sequence[Frame], name: Name) -> dict[str, Spread]:
    """By stage; empty if `name` did not take part."""
    own = [frame.stages for frame in frames if frame.contestant == name]
    return {stage: spread([stages[stage] for stages in own]) for stage in own[0]} if own else {}


def spread(values: Sequence[float]) -> Spread:
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return Spread(p50=p50, p90=p90, p99=p99, mean=float(np.mean(values)))


def ratios(frames: Sequence[Frame]) -> dict[str, float]:
    """Torch's time over the engine's by stage: the median over rounds, each round against itself."""
    rounds: dict[int, dict[Name, dict[str, float]]] = {}
    for frame in frames:
        rounds.setdefault(frame.round, {})[frame.contestant] = frame.stages
    pairs = [(pair["torch"], pair["engine"]) for pair in rounds.values() if len(pair) == 2]
    if not pairs:
        return {}
    return {stage: float(np.median([torch[stage] / engine[stage] for torch, engine in pairs])) for stage in pairs[0][1]}
