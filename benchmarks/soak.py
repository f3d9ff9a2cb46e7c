"""Hours of frames at random sizes and class lists, from several threads: no memory lost, no result swapped.

python benchmarks/soak.py --bundle bundles/tiny --minutes 120
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

import benchmarks  # noqa: F401  # before anything that imports `kernels`, see there
from runtime.cli import console, one_line_errors
from runtime.errors import ParityError

if TYPE_CHECKING:
    from runtime.segmenter import Segmenter

CASES = 24  # photos with their class lists, each seen over and over
SETTLED = 0.25  # of the time: until then libraries' arenas grow to the largest frame
MOST_GROWTH = 0.02  # of the memory, and at least:
SLACK = 32 << 20
LEAST_AGREEMENT = 0.999  # of a frame with itself: engines may choose another order of sums in another moment

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Case:
    photo: np.ndarray
    classes: tuple[str, ...]


@dataclass
class Log:
    """Memory in bytes by seconds since the start: of this process; of the GPU, since the first look."""

    host: list[tuple[float, int]] = field(default_factory=list)
    device: list[tuple[float, int]] = field(default_factory=list)
    free_at_first: int = 0
    frames: int = 0
    faults: list[str] = field(default_factory=list)


@app.command()
def main(
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")] = Path("bundles/tiny"),
    minutes: Annotated[float, typer.Option(help="How long.", min=0.01)] = 120.0,
    backend: Annotated[str, typer.Option(help="As for segmenting.")] = "auto",
    callers: Annotated[int, typer.Option(help="Threads that share one Segmenter.", min=1)] = 8,
    largest: Annotated[int, typer.Option(help="Longest side of a photo.", min=16)] = 1280,
    seed: Annotated[int, typer.Option(help="Of sizes, pictures and lists.")] = 0,
) -> None:
    """Prints memory as it goes; exits with 3 if it grows, or if a frame gets another result than before."""
    with one_line_errors():
        from runtime.segmenter import Segmenter

        with Segmenter.load(bundle, backend=backend, cache_dir=None) as segmenter:
            cases = make_cases(segmenter.bundle.manifest.vocabulary, largest, seed)
            log = soak(segmenter, cases, 60 * minutes, callers, seed)
        console.print(f"{log.frames} frames, {len(cases)} photos and class lists, {callers} callers")
        check(log)


def make_cases(vocabulary: tuple[str, ...], largest: int, seed: int) -> list[Case]:
    """Noise of any size and shape, the first as large as they come; lists of any length and order."""
    chance, rng = random.Random(seed), np.random.default_rng(seed)
    words = vocabulary or tuple(f"object {index}" for index in range(60))
    cases = []
    for index in range(CASES):
        height, width = (largest, largest) if index == 0 else (chance.randint(8, largest), chance.randint(8, largest))
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        photo = np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])
        count = len(words) if index == 0 else chance.randint(1, len(words))
        cases.append(Case(photo, tuple(chance.sample(words, count))))
    return cases


def soak(segmenter: Segmenter, cases: list[Case], seconds: float, callers: int, seed: int) -> Log:
    """Callers take cases at random, and every one of them changes the class list for its frame."""
    expected = [segment(segmenter, case) for case in cases]
    log, end, begin = Log(), time.monotonic() + seconds, time.monotonic()
    lists = threading.Lock()

    def call(number: int) -> None:
        chance = random.Random(1000 * seed + number)
        while time.monotonic() < end and not log.faults:
            index = chance.randrange(len(cases))
            case = cases[index]
            with lists:  # a frame keeps the classes of the moment of its submission
                segmenter.set_classes(list(case.classes))
                future = segmenter.submit(case.photo, scores=False)
            result = future.result()
            log.frames += 1
            if result.classes != case.classes or not alike(result.labels, expected[index]):
                log.faults.append(f"frame {log.frames}: another result than before for photo {index}")

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sample(log, time.monotonic() - begin, seconds)
        time.sleep(min(10.0, seconds / 40))
    for thread in threads:
        thread.join()
    sample(log, time.monotonic() - begin, seconds)
    return log


def segment(segmenter: Segmenter, case: Case) -> np.ndarray:
    segmenter.set_classes(list(case.classes))
    return segmenter(case.photo, scores=False).labels


def alike(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and float(np.mean(found == expected)) >= LEAST_AGREEMENT


def sample(log: Log, seconds: float, whole: float) -> None:
    from runtime.gpu import find_gpu, free_memory

    log.host.append((seconds, resident()))
    line = f"{seconds / 60:6.1f} of {whole / 60:.1f} min, {log.frames} frames, host {log.host[-1][1] / 1e6:.0f} MB"
    if find_gpu() is not None:
        free = free_memory()
        log.free_at_first = log.free_at_first or free
        log.device.append((seconds, log.free_at_first - free))
        line += f", device {log.device[-1][1] / 1e6:+.0f} MB"
    console.print(line)


def resident() -> int:
    """Bytes of this process in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def check(log: Log) -> None:
    """Raises ParityError: results or memory are not what they were."""
    if log.faults:
        raise ParityError(log.faults[0])
    for name, samples in (("host", log.host), ("device", log.device)):
        if samples and (said := growth(samples)):
            raise ParityError(f"{name} memory grows: {said}")


def growth(samples: list[tuple[float, int]]) -> str:
    """What is wrong with (seconds, bytes), "" if nothing: the last half against the first, once it has settled."""
    settled = [used for seconds, used in samples if seconds >= SETTLED * samples[-1][0]]
    first, last = max(settled[: len(settled) // 2 + 1]), max(settled[len(settled) // 2 :])
    if last - first <= max(SLACK, MOST_GROWTH * first):
        return ""
    return f"{first / 1e6:.0f} MB in the first half, {last / 1e6:.0f} MB in the second"


if __name__ == "__main__":
    app()
