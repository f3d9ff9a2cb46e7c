"""The sheet: a few pictures with truth, the first contestant, its last rival, and where these two differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from benchmarks.segmentation_metrics import IGNORE, Box
from runtime.images import Pixels
from runtime.visualize import color_map

LabelMap = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
CELL = 3.0  # inches a picture
FONT = 6.0  # points of a name on a map
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
    if single:
        row[-1].imshow(highlight(example.image, different))
        caption(row[-1], f"{share(different, known)} of pixels")
    else:  # often single pixels, which nobody would see
        row[-1].imshow(highlight(example.image, cv2.dilate(different.view(np.uint8), np.ones((3, 3), np.uint8)) > 0))
        caption(row[-1], f"{share(different, np.ones_like(known))} of pixels, drawn 1 px wider")


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
    """Every class in its colour; the largest ones with their names, as far as there is room beside the others."""
    axes.imshow(color_map(labels, classes))
    regions = filter(None, (widest_region(labels, index) for index in np.unique(labels) if index < len(classes)))
    named = sorted(regions, key=lambda region: -region.depth)[:_MOST_NAMES]
    for region, (x, y) in places(named, [classes[region.label] for region in named], labels.shape):
        text = axes.text(x, y, classes[region.label], ha="center", va="center", fontsize=FONT, color="white")
        text.set_path_effects([withStroke(linewidth=1.4, foreground="#202020")])


@dataclass(frozen=True)
class Region:
    """Where a class is widest: pixels to the nearest other class, that spot, and the box of its connected part."""

    label: int
    depth: float
    x: int
    y: int
    box: Box


def widest_region(labels: LabelMap, index: int) -> Region | None:
    """None where the class is a sliver."""
    mask = np.pad((labels == index).astype(np.uint8), 1)
    _, depth, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(mask, cv2.DIST_L2, 3))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
    left, top, width, height, _ = (int(value) for value in stats[parts[y, x]])
    box = left - 1, top - 1, left - 1 + width, top - 1 + height
    return Region(int(index), depth, x - 1, y - 1, box) if depth >= 3 else None


def places(
    regions: Sequence[Region], names: Sequence[str], shape: tuple[int, ...]
) -> Iterator[tuple[Region, tuple[float, float]]]:
    """The centre of each name: inside what is large, else below, above or beside it, where nothing else is.

    A name that fits nowhere is left out.
    """
    rows, columns = shape[:2]
    unit = columns / (72 * CELL)  # pixels a point
    tall = 0.6 * FONT * unit  # half a line
    small = [region.box for region in regions if region.depth < 2 * tall]
    taken: list[tuple[float, float, float, float]] = []
    for region, name in zip(regions, names, strict=True):
        wide = 0.29 * FONT * unit * len(name)
        left, top, right, bottom = region.box
        x = min(max(region.x, wide), columns - wide)
        if region.depth >= 2 * tall:
            spots = [(x, float(region.y))]
        else:
            beside = (left + right) / 2, (top + bottom) / 2
            x = min(max(beside[0], wide), columns - wide)
            spots = [(x, bottom + tall), (x, top - tall), (right + wide, beside[1]), (left - wide, beside[1])]
        for spot in spots:
            box = spot[0] - wide, spot[1] - tall, spot[0] + wide, spot[1] + tall
            inside = min(box[0], box[1]) >= -1 and box[2] <= columns + 1 and box[3] <= rows + 1
            if inside and not any(meet(box, other) for other in (*taken, *small) if other != region.box):
                taken.append(box)
                yield region, spot
                break


def meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes (left, top, right, bottom) share a pixel."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
