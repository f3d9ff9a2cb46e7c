"""The picture of a video result: what each setting gains and costs, and a frame where the most was reused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.sheets import caption, draw_labels, highlight, share
from benchmarks.video_record import VideoRecord, VideoScore
from benchmarks.video_run import Example

COLORS = {"all": "#3b6fb6", "changed": "#e8963e"}
WIDTH = 15.0  # inches


def save_video_chart(path: Path, record: VideoRecord, examples: Sequence[Example], classes: Sequence[str]) -> None:
    """One row a kind of clip."""
    figure = Figure(figsize=(WIDTH, 3.2 * len(examples) + 0.8), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(examples), 5, squeeze=False, width_ratios=[1.5, 1, 1, 1, 1])
    for row, example in zip(grid, examples, strict=True):
        scores = [one for one in record.scores if one.clip == example.clip]
        draw_scores(row[0], scores)
        row[0].set_title(example.clip, fontsize=10, weight="bold", loc="left")
        draw_example(row[1:], example, classes, scores[-1].name)
    title = "\n".join(fill(line, 170) for line in (record.title, " ".join(record.remarks)) if line)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path, format="png")


def draw_scores(axes: Axes, scores: Sequence[VideoScore]) -> None:
    """Speed-up against agreement on objects, the settings with the same crops joined; the number is reuse_global."""
    for crops, color in COLORS.items():
        own = [one for one in scores if one.crops == crops]
        x, y = [one.speedup for one in own], [100 * (one.on_objects or 0) for one in own]
        axes.plot(x, y, "-o", color=color, markersize=5, linewidth=1, label=f"crops={crops!r}")
        above = 6 if crops == "changed" else -12
        for one, *spot in zip(own, x, y, strict=True):
            axes.annotate(str(one.reuse_global), spot, (0, above), textcoords="offset points", color=color, ha="center")
    axes.set_xlabel("speed-up of a clip; numbers: reuse_global", fontsize=8.5)
    axes.set_ylabel("object pixels labelled as without reuse, %", fontsize=8.5)
    axes.margins(0.12, 0.2)
    axes.ticklabel_format(useOffset=False)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="best")


def draw_example(row: Sequence[Axes], example: Example, classes: Sequence[str], name: str) -> None:
    headings = ["last frame", "every frame in full", name, "labels that differ"]
    for axes, heading in zip(row, headings, strict=True):
        axes.set_axis_off()
        axes.set_title(heading, fontsize=9)
    row[0].imshow(example.image)
    draw_labels(row[1], example.full, classes)
    draw_labels(row[2], example.reused, classes)
    different = example.full != example.reused
    row[3].imshow(highlight(example.image, cv2.dilate(different.view(np.uint8), np.ones((3, 3), np.uint8)) > 0))
    caption(row[3], f"{share(different, np.ones_like(different))} of pixels, drawn 1 px wider")
