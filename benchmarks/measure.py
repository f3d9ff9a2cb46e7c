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
from benchmarks.gpu_state import GpuState, gpu_state
from runtime.errors import ParityError
from runtime.gpu import find_gpu

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
    agreement: Share of pixels that the engine labels as torch in fp32 does; None without torch.
    torch_agreement: The same of torch in its other ways.
    precision: What each stage of the engine computes in, read back from it.
    gpu: After the last frame, while all contestants are still open; None on a CPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    agreement: float | None
    torch_agreement: dict[str, float]
    precision: dict[str, str]
    gpu: GpuState | None
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
        alike = {name: float(np.mean(found == labels["torch"])) for name, found in labels.items() if "torch" in labels}
        check_agreement(alike.get("engine"), task)
        frames = take_turns(contestants, photo, task.warmup, task.frames)
        return Interleaved(
            agreement=alike.get("engine"),
            torch_agreement={name: share for name, share in alike.items() if name not in ("engine", "torch")},
            precision=contestants["engine"].precision,
            gpu=state_of_gpu() if task.on_gpu else None,
            frames=frames,
        )


def state_of_gpu() -> GpuState | None:
    gpu = find_gpu()
    return None if gpu is None else gpu_state(gpu)


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


def ratios(frames: Sequence[Frame]) -> dict[str, dict[str, float]]:
    """A rival's time over the engine's by stage: the median over rounds, each round against itself.

    Of the stages that both have: on a GPU, torch's frame knows the device's time and the whole only.
    """
    rounds: dict[str, dict[int, dict[str, float]]] = {}
    for frame in frames:
        rounds.setdefault(frame.contestant, {})[frame.round] = frame.stages
    engine = rounds.pop("engine", {})
    return {name: _ratio([(own[turn], engine[turn]) for turn in own if turn in engine]) for name, own in rounds.items()}


def _ratio(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, float]:
    common = [stage for stage in pairs[0][1] if stage in pairs[0][0]] if pairs else []
    return {stage: float(np.median([rival[stage] / engine[stage] for rival, engine in pairs])) for stage in common}
