"""The picture of a training: losses and scores of every phase over its steps."""

from __future__ import annotations

import json
from pathlib import Path

PHASES = {"align": "alignment with text", "early": "AnyUp", "head": "refinement head"}


def read_curve(file: Path) -> list[dict[str, float]]:
    """The rows of a phase by step; a resumed run may have written a step twice, the last one counts."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def draw_curves(work: Path, picture: Path) -> None:
    """One row a phase: losses on the left, scores on validation scenes on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    phases = {name: read_curve(work / f"{name}.jsonl") for name in PHASES if (work / f"{name}.jsonl").exists()}
    figure, grid = plt.subplots(len(phases), 2, figsize=(11, 3 * len(phases)), squeeze=False, layout="constrained")
    for (name, rows), (left, right) in zip(phases.items(), grid, strict=True):
        steps = [row["step"] for row in rows]
        for key in rows[0]:
            if key not in ("step", "minutes"):
                is_loss = key.startswith("loss ")
                axes, label = (left, key.removeprefix("loss ")) if is_loss else (right, key)
                axes.plot(steps, [row[key] for row in rows], label=label)
        left.set(title=f"{PHASES[name]}: losses", xlabel="step", yscale="log")
        right.set(title=f"{PHASES[name]}: validation scenes", xlabel="step")
        for axes in (left, right):
            if axes.lines:
                axes.legend(fontsize=8)
                axes.grid(alpha=0.3)
            else:
                axes.set_visible(False)
    figure.savefig(picture, dpi=90)
    plt.close(figure)
