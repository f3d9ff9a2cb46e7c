"""The confusion picture: what is taken for what, row by row in percent of the true pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.datasets import Dataset

Counts = npt.NDArray[np.int64]
MOST = 20  # classes of a user's data
_LONGEST = 18  # letters of a class name


@dataclass(frozen=True)
class Panel:
    """counts (rows, columns) of pixels: true by predicted."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: Counts


def save_confusion(path: Path, counts: Counts, dataset: Dataset, title: str, note: str) -> None:
    """`counts` (K, K + 1) as in `Confusion`; `note` is a line below, "" for none."""
    if dataset.tabletop:
        panels, width, height = tabletop_panels(counts), 11.0, 7.0
    else:
        panels = [largest_classes(counts, dataset.classes)]
        width = height = 3.5 + 0.42 * len(panels[0].columns)
    figure = Figure(figsize=(max(width, 8), height + 0.6), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    for axes, panel in zip(arrange(figure, panels), panels, strict=True):
        draw(axes, panel)
    figure.suptitle(fill_lines(title, round(width * 11)), x=0.01, ha="left", fontsize=11, weight="bold")
    legend = "Rows: truth; columns: prediction; cells: percent of the row's pixels, empty under 0.5."
    below = f"\n{legend}\n{note}".rstrip()  # the first line is a gap to the slanted names
    figure.supxlabel(fill_lines(below, round(width * 14)), x=0.01, ha="left", fontsize=9, color="#444444")
    figure.savefig(path, format="png")


def arrange(figure: Figure, panels: Sequence[Panel]) -> list[Axes]:
    """The first panel on the left, the others one below the other; cells of about the same size."""
    if len(panels) == 1:
        return [figure.subplots()]
    first, *others = panels
    heights = [len(panel.rows) + 1.5 for panel in others]  # and the names of the columns
    widths = [len(first.columns) + 1.5, max(len(panel.columns) for panel in others) + 1.5]
    grid = figure.add_gridspec(len(others), 2, width_ratios=widths, height_ratios=heights)
    return [figure.add_subplot(grid[:, 0]), *(figure.add_subplot(grid[row, 1]) for row in range(len(others)))]


def fill_lines(text: str, width: int) -> str:
    return "\n".join(fill(line, width) for line in text.splitlines())


def tabletop_panels(counts: Counts) -> list[Panel]:
    """Appearance by appearance and shape by shape over the pixels of objects, and the surfaces."""
    from benchmarks.scene_vocabulary import APPEARANCES, SHAPES, SURFACES, VOCABULARY

    objects = VOCABULARY[len(SURFACES) :]
    appearance = [APPEARANCES.index(name.split()[0]) for name in objects]
    shape = [SHAPES.index(name.split()[1]) for name in objects]
    first, nothing = len(SURFACES), len(VOCABULARY)

    def panel(title: str, words: Sequence[str], of: Sequence[int]) -> Panel:
        columns = [len(words)] * first + list(of) + [len(words)]  # surfaces and "no class" share the last
        return Panel(title, tuple(words), (*words, "surface"), gather(counts[first:], of, columns, len(words) + 1))

    surfaces = list(range(first))
    columns = [*surfaces, *([first] * (nothing - first)), first]
    rows = [*surfaces, *([first] * (nothing - first))]
    names = (*SURFACES, "object")
    return [
        panel("appearance of objects", APPEARANCES, appearance),
        panel("shape of objects", SHAPES, shape),
        Panel("surfaces", names, names, gather(counts, rows, columns, first + 1)),
    ]


def gather(counts: Counts, rows: Sequence[int], columns: Sequence[int], width: int) -> Counts:
    """Adds up the cells that `rows` and `columns` send to the same place."""
    table = np.zeros((max(rows) + 1, width), np.int64)
    np.add.at(table, (np.array(rows)[:, None], np.array(columns)[None, :]), counts)
    return table


def largest_classes(counts: Counts, classes: Sequence[str]) -> Panel:
    """The classes with the most true pixels, the largest first; all others in one column."""
    pixels = counts.sum(1)
    order = [int(index) for index in np.argsort(-pixels, kind="stable")[:MOST] if pixels[index]]
    names = tuple(shorten(classes[index]) for index in order)
    chosen = counts[order]
    rest = chosen.sum(1) - chosen[:, order].sum(1)
    title = "all classes" if len(order) == len(classes) else f"the {len(order)} largest classes"
    return Panel(title, names, (*names, "other"), np.column_stack([chosen[:, order], rest]))


def shorten(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def draw(axes: Axes, panel: Panel) -> None:
    totals = panel.counts.sum(1, keepdims=True)
    shares = 100 * panel.counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="equal")
    axes.set_anchor("NW")
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            if value >= 0.5:
                ink = "white" if value > 55 else "#202020"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(panel.columns)), panel.columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(panel.rows)), panel.rows)
    for empty in np.flatnonzero(totals == 0).tolist():
        axes.text(0, empty, "no pixels", va="center", fontsize=8, color="#888888", style="italic")
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(0.5, len(panel.columns) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(panel.rows) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
