"""One picture: where the time of a frame goes, in the engine and in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# A stage has the same colour in every picture, in the order of the data.
COLORS = {
    "preprocess": "#9e9e9e",
    "backbone crops": "#3b6fb6",
    "backbone full": "#7fb0e0",
    "lga_merge": "#c7c7c7",
    "anyup": "#e8963e",
    "correlation": "#8c6d4f",
    "sam_encoder": "#4f9d69",
    "refinement": "#b5528f",
    "decoder": "#d98fbd",
    "upsample_argmax": "#d9c94a",
    "device": "#3b6fb6",
    "host": "#c7c7c7",
}
OTHER = "#5a5a5a"
LABEL_SHARE = 0.05  # of the axis: narrower segments have their number in the legend only

Means = Mapping[str, Mapping[str, float]]


def save_chart(path: Path, means: Means, title: Sequence[str], note: str) -> None:
    """Stacked horizontal bars.

    Args:
        means: By contestant, the mean milliseconds of each stage; "total" is written beside the bar.
        title: Lines; the first is large.
        note: A line below, "" for none.
    """
    figure = Figure(figsize=(11, 3.0 + 0.75 * len(means)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    longest = max(content["total"] for content in means.values())
    for row, content in enumerate(means.values()):
        _bar(axes, row, content, longest)
        axes.text(content["total"] + 0.01 * longest, row, f"{content['total']:.1f} ms", va="center", weight="bold")
    axes.set_yticks(range(len(means)), list(means))
    axes.set_xlim(0, 1.13 * longest)
    axes.set_ylim(len(means) - 0.5, -0.5)
    axes.set_xlabel("mean ms of a warm frame")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(title[0], x=0.01, ha="left", weight="bold", fontsize=13)
    axes.set_title("\n".join(title[1:]), loc="left", fontsize=9, color="#444444")
    _legend(axes, means)
    if note:
        figure.supxlabel("\n" + fill(note, 150), x=0.01, ha="left", fontsize=9, style="italic", color="#a03030")
    figure.savefig(path, format="png")


def stage_names(means: Means) -> list[str]:
    return [stage for stage in dict.fromkeys(stage for one in means.values() for stage in one) if stage != "total"]


def _bar(axes: Axes, row: int, content: Mapping[str, float], longest: float) -> None:
    left = 0.0
    for stage, value in content.items():
        if stage == "total":
            continue
        color = COLORS.get(stage, OTHER)
        axes.barh(row, value, left=left, height=0.62, color=color, edgecolor="white", linewidth=0.6)
        if value > LABEL_SHARE * longest:
            ink = "white" if _luminance(color) < 0.5 else "#202020"
            axes.text(left + value / 2, row, f"{value:.1f}", ha="center", va="center", fontsize=9, color=ink)
        left += value


def _luminance(color: str) -> float:
    red, green, blue = to_rgb(color)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _legend(axes: Axes, means: Means) -> None:
    """Every stage with its numbers, in the order of the bars."""
    handles = [
        Patch(
            color=COLORS.get(stage, OTHER),
            label=f"{stage}  " + " / ".join(f"{content.get(stage, 0):.1f}" for content in means.values()),
        )
        for stage in stage_names(means)
    ]
    heading = "mean ms: " + " / ".join(name.replace("\n", " ") for name in means)
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(-0.01, -0.5 / len(means)),
        ncols=4,
        fontsize=8.5,
        frameon=False,
        title=heading,
        title_fontsize=9,
        alignment="left",
    )
