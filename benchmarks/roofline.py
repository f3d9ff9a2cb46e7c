"""One picture: how near every kernel is to what memory and arithmetic allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.kernel_record import KernelRecord, Measured, Timing

COLORS = {"lga_merge": "#3b6fb6", "upsample_argmax": "#e8963e", "preprocess": "#4f9d69"}
RIVAL = "#9e9e9e"


def save_roofline(path: Path, record: KernelRecord) -> None:
    figure = Figure(figsize=(11, 6.5), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bandwidth = float(np.median([case.bandwidth for case in record.cases]))
    _roof(axes, bandwidth, record.peak)
    for number, case in enumerate(record.cases, start=1):
        _points(axes, case, number)
    _numbers(axes, record.cases)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations of the direct method a byte that must move")
    axes.set_ylabel("10^9 operations of the direct method a second")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"Kernels on {record.machine.cpu if record.device == 'cpu' else record.device}", weight="bold")
    note = "coloured: ours; grey: the fastest other; above the roof: pruning leaves operations out"
    axes.set_title("; ".join((note, *record.remarks)), fontsize=8, loc="left", wrap=True)
    figure.savefig(path, format="png")


def _roof(axes: Axes, bandwidth: float, peak: float) -> None:
    intensity = np.geomspace(0.05, 2000, 200)
    label = f"roof: {bandwidth:.1f} GB/s, {peak:.0f} GFLOP/s"
    axes.plot(intensity, np.minimum(intensity * bandwidth, peak), color="#404040", linewidth=1.2, label=label)


def _points(axes: Axes, case: Measured, number: int) -> None:
    intensity, ours = _position(case)
    others = [_rate(case, timing) for timing in case.timings if not timing.contestant.startswith("ours")]
    if others:
        axes.plot([intensity] * 2, [max(others), ours], color=RIVAL, linewidth=0.8)
        axes.scatter(intensity, max(others), s=18, color=RIVAL, zorder=2)
    label = f"{number} {case.kernel}: {case.inputs}"
    axes.scatter(intensity, ours, s=34, color=COLORS[case.kernel], zorder=3, label=label)


def _numbers(axes: Axes, cases: Sequence[Measured]) -> None:
    """One label for points that lie on each other: labels over labels cannot be read."""
    groups: list[tuple[tuple[float, float], list[str]]] = []
    for number, case in enumerate(cases, start=1):
        place = _position(case)
        for other, numbers in groups:
            if all(abs(np.log(mine / theirs)) < 0.18 for mine, theirs in zip(place, other, strict=True)):
                numbers.append(str(number))
                break
        else:
            groups.append((place, [str(number)]))
    for place, numbers in groups:
        axes.annotate(", ".join(numbers), place, xytext=(6, 3), textcoords="offset points", fontsize=8)


def _position(case: Measured) -> tuple[float, float]:
    ours = next(timing for timing in case.timings if timing.contestant == "ours")
    return case.operations / case.moved, _rate(case, ours)


def _rate(case: Measured, timing: Timing) -> float:
    return case.operations / timing.median / 1e6
