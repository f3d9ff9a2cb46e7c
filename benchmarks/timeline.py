"""One picture: what of a frame runs when on the GPU, and what runs beside what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.charts import COLORS, OTHER
from benchmarks.stage_profile import Site


def save_timeline(path: Path, sites: Sequence[Site], title: Sequence[str], note: str) -> None:
    """A bar for every site, from its start to its end.

    Args:
        title: Lines; the first is large.
        note: A line below, "" for none.
    """
    figure = Figure(figsize=(11, 2.0 + 0.34 * len(sites)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    end = max(site.start_ms + site.milliseconds for site in sites)
    for row, site in enumerate(sites):
        color = COLORS.get(site.site, COLORS.get(site.stage, OTHER))
        axes.barh(row, max(site.milliseconds, 0.001 * end), left=site.start_ms, height=0.7, color=color)
        axes.text(site.start_ms + site.milliseconds + 0.006 * end, row, _label(site), va="center", fontsize=8.5)
    axes.set_yticks(range(len(sites)), [site.site for site in sites])
    axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.set_xlim(0, 1.22 * end)  # the last bars have their numbers to the right
    axes.set_xlabel("ms from the first event, stages launched one by one with events around each")
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(title[0], x=0.01, ha="left", weight="bold", fontsize=13)
    axes.set_title("\n".join(title[1:]), loc="left", fontsize=9, color="#444444")
    if note:
        figure.supxlabel("\n" + fill(note, 150), x=0.01, ha="left", fontsize=9, style="italic", color="#a03030")
    figure.savefig(path, format="png")


def _label(site: Site) -> str:
    parts = [f"{site.milliseconds:.3f} ms"]
    if site.tflops is not None:
        parts.append(f"{site.tflops:,.1f} TFLOP/s")
    if site.bandwidth is not None:
        parts.append(f"{site.bandwidth:,.0f} GB/s")
    return ", ".join(parts)
