"""The sheet: a few pictures with truth, the first contestant, its last rival, and where these two differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from benchmarks.accuracy_run import Example
from benchmarks.segmentation_metrics import IGNORE
from runtime.images import Pixels
from runtime.visualize import color_map

LabelMap = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
CELL = 3.0  # inches a picture
_DIFFERENT = (230, 30, 120)
_MOST_NAMES = 10  # written on one map


def save_sheet(
    path: Path, examples: Sequence[Example], classes: Sequence[str], titles: tuple[str, str], title: str
) -> None:
    """One row a picture, below a `title` of one or more lines.

    With one contestant alone, the last column shows where it differs from the truth.
    """
    first, last = titles
    single = first == last
    headings = ["image", "truth", first] + ([f"{first} is wrong"] if single else [last, f"{last} differs"])
    heights = [CELL * example.truth.shape[0] / example.truth.shape[1] + 0.25 for example in examples]
    size = CELL * len(headings), sum(heights) + 0.7
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(examples), len(headings), squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (row, example) in enumerate(zip(grid, examples, strict=True)):
        draw_row(row, example, classes, single)
        for axes, heading in zip(row, headings, strict=True):
            if index == 0:
                axes.set_title(heading, fontsize=10, weight="bold")
    lines = [fill(line, round(size[0] * 10)) for line in title.splitlines()]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10)
    figure.savefig(path, format="png")


def draw_row(row: Sequence[Axes], example: Example, classes: Sequence[str], single: bool) -> None:
    known = example.truth != IGNORE
    maps = [example.truth, example.first] if single else [example.truth, example.first, example.last]
    row[0].imshow(example.image)
    caption(row[0], example.name)
    for axes, labels in zip(row[1:], maps, strict=False):
        draw_labels(axes, labels, classes)
    for axes, labels in zip(row[2 : 1 + len(maps)], maps[1:], strict=True):
        caption(axes, f"{share(labels == example.truth, known)} of pixels right")
    different = (example.first != example.truth) & known if single else example.first != example.last
    row[-1].imshow(highlight(example.image, different))
    caption(row[-1], f"{share(different, known if single else np.ones_like(known))} of pixels")


def share(mask: Mask, among: Mask) -> str:
    total = np.count_nonzero(among)
    return f"{100 * np.count_nonzero(mask & among) / total:.2f} %" if total else "none"


def caption(axes: Axes, text: str) -> None:
    axes.text(0.5, -0.02, text, transform=axes.transAxes, ha="center", va="top", fontsize=8.5, color="#444444")


def highlight(image: Pixels, mask: Mask) -> Pixels:
    """The picture pale and grey, with `mask` in a strong colour."""
    grey = 140 + cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY) * 0.4
    painted = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    painted[mask] = _DIFFERENT
    return painted


def draw_labels(axes: Axes, labels: LabelMap, classes: Sequence[str]) -> None:
    """Every class in its colour, the largest ones with their names."""
    axes.imshow(color_map(labels, classes))
    spots = sorted(filter(None, (widest_spot(labels, index) for index in np.unique(labels))), reverse=True)
    for _, index, x, y in [spot for spot in spots if spot[1] < len(classes)][:_MOST_NAMES]:
        side = "left" if 5 * x < labels.shape[1] else "right" if 5 * x > 4 * labels.shape[1] else "center"
        text = axes.text(x, y, classes[index], ha=side, va="center", fontsize=6, color="white", clip_on=True)
        text.set_path_effects([withStroke(linewidth=1.4, foreground="#202020")])


def widest_spot(labels: LabelMap, index: int) -> tuple[float, int, int, int] | None:
    """(pixels to the nearest other class, class, x, y) where the class is widest; None where it is a sliver."""
    mask = np.pad((labels == index).astype(np.uint8), 1)
    _, depth, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(mask, cv2.DIST_L2, 3))
    return (depth, int(index), x - 1, y - 1) if depth >= 4 else None
