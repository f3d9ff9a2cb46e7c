"""The picture of a training: losses and scores of every phase over its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PHASES = {"align": "alignment with text", "early": "AnyUp", "head": "refinement head"}
SCORES = {"align": "% of object patches", "early": "", "head": "mIoU, %"}
SCALES = {"align": 100, "early": 1, "head": 1}  # what is logged -> percent


def read_curve(file: Path) -> list[dict[str, float]]:
    """The rows of a phase by step; a resumed run may have written a step twice, the last one counts."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def draw_curves(work: Path, picture: Path) -> None:
    """One row a phase: losses on the left, scores on validation scenes on the right, in percent."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    phases = {name: read_curve(work / f"{name}.jsonl") for name in PHASES if (work / f"{name}.jsonl").exists()}
    figure, grid = plt.subplots(len(phases), 2, figsize=(12, 3 * len(phases)), squeeze=False, layout="constrained")
    for (name, rows), (left, right) in zip(phases.items(), grid, strict=True):
        steps = [row["step"] for row in rows]
        for key in rows[0]:
            if key in ("step", "minutes"):
                continue
            values = [row[key] for row in rows]
            if key.startswith("loss "):
                left.plot(steps, values, label=key.removeprefix("loss "))
            else:
                right.plot(steps, [SCALES[name] * value for value in values], label=key)
        left.set(title=f"{PHASES[name]}: losses", xlabel="step", yscale="log")
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_formatter("{x:g}" if spans_less_than_a_decade(left) else "")
        right.set(title=f"{PHASES[name]}: validation scenes", xlabel="step", ylabel=SCORES[name], ylim=(0, 100))
        for axes in (left, right):
            if axes.lines:
                axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)  # never on a line
                axes.grid(alpha=0.3)
            else:
                axes.set_visible(False)
    figure.savefig(picture, dpi=90)
    plt.close(figure)


def spans_less_than_a_decade(axes: Any) -> bool:
    low, high = axes.get_ylim()
    return bool(high < 10 * low)
