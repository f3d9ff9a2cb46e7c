"""The schema of kernels.json, and the table of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.record import Entry, Occasion

METHOD = {
    "time": "CPU time of one thread (cpu) or CUDA events (cuda); all contestants in one process, in turn, the order "
    "reversed from round to round",
    "ratio": "a contestant's time over ours, the median over rounds",
    "share": "bytes that any method must move at least, over our median time, over the bandwidth of STREAM's triad "
    "(cuda: of a device copy) measured in the same rounds; above 1 where ours writes past the caches and the triad, "
    "compiled as everywhere, reads what it is about to write",
    "memory": "inputs and results rotate through more memory than the caches hold",
}


class Timing(Entry):
    """Milliseconds, one for each round; `ratio` is over ours."""

    contestant: str
    rounds: tuple[float, ...]
    ratio: float

    @property
    def median(self) -> float:
        return float(np.median(self.rounds))


class Measured(Entry):
    """One case. `moved` bytes, `operations` of the direct method, `bandwidth` in GB/s."""

    kernel: str
    inputs: str
    moved: int
    operations: int
    agreement: float | None
    bandwidth: float
    timings: tuple[Timing, ...]

    @property
    def ours(self) -> Timing:
        return self.timings[0]

    @property
    def share(self) -> float:
        return self.moved / (self.ours.median * 1e6) / self.bandwidth


class KernelRecord(Occasion):
    """`peak` is the GFLOP/s of a matrix product, the roof of the picture."""

    device: str
    build: dict[str, Any]
    method: dict[str, str] = METHOD
    logits: str
    peak: float
    remarks: tuple[str, ...]
    cases: tuple[Measured, ...]


def measured(case: Any, rounds: dict[str, list[float]], bandwidth: float) -> Measured:
    ours = np.asarray(rounds["ours"])
    timings = [
        Timing(contestant=name, rounds=tuple(values), ratio=float(np.median(np.asarray(values) / ours)))
        for name, values in rounds.items()
    ]
    return Measured(
        kernel=case.kernel,
        inputs=case.inputs,
        moved=case.moved,
        operations=case.operations,
        agreement=case.agreement,
        bandwidth=bandwidth,
        timings=tuple(timings),
    )


def table(record: KernelRecord) -> Table:
    title = f"kernels on {record.device}, {record.build['cpu'] if record.device == 'cpu' else 'one stream'}"
    found = Table("kernel and input", "contestant", title=title)
    for heading in ("min ms", "median ms", "over ours", "GB/s", "of the bandwidth"):
        found.add_column(heading, justify="right")
    for case in record.cases:
        for timing in case.timings:
            is_ours = timing is case.ours
            label = f"{case.kernel}: {case.inputs}" if is_ours else ""
            speed = case.moved / (timing.median * 1e6)
            numbers = [f"{min(timing.rounds):.2f}", f"{timing.median:.2f}", f"{timing.ratio:.2f}x", f"{speed:.1f}"]
            share = f"{case.share:.0%} of {case.bandwidth:.1f}" if is_ours else ""
            found.add_row(label, timing.contestant, *numbers, share, style="bold" if is_ours else None)
        found.add_section()
    return found


def sentences(cases: Sequence[Measured]) -> list[str]:
    found = []
    for contestant in ("ours, avx2", "ours, sse2", "ours, direct"):
        ratios = [timing.ratio for case in cases for timing in case.timings if timing.contestant == contestant]
        if ratios:
            found.append(f"{contestant}: {min(ratios):.2f} to {max(ratios):.2f} times as long as ours")
    agreements = [case.agreement for case in cases if case.agreement is not None]
    if agreements:
        least = f"{min(agreements):.4%} at the least"
        found.append(f"labels as torch's: {least} (torch and ours round and break ties differently)")
    return found
