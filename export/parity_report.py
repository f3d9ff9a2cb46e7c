"""What the gate saw, as `parity.json` and as a page with pictures that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL.Image
from pydantic import BaseModel

from runtime.engines.base import Array
from runtime.manifest import EndToEnd, StageParity
from runtime.parity import LIMITS, passes
from runtime.visualize import color_map, overlay

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; text-align: right }
th { border-bottom: 2px solid #888; text-align: right } td:first-child, th:first-child { text-align: left }
tr.wrong { background: #fbd5d5 } td.verdict { font-weight: 600 } .row { display: flex; gap: .8rem; flex-wrap: wrap }
figure { margin: 0; flex: 1 1 14rem } img { width: 100% } figcaption { color: #555 }
"""


class ParityReport(BaseModel):
    """Limits by precision, every stage in every engine, and whole frames."""

    limits: Mapping[str, dict[str, float]]
    stages: tuple[StageParity, ...]
    end_to_end: tuple[EndToEnd, ...]
    random_weights: bool


def make_report(stages: Iterable[StageParity], runs: Iterable[EndToEnd], random_weights: bool) -> ParityReport:
    limits: dict[str, dict[str, float]] = {name: asdict(limit) for name, limit in LIMITS.items()}
    return ParityReport(limits=limits, stages=tuple(stages), end_to_end=tuple(runs), random_weights=random_weights)


def write_report(
    root: Path, report: ParityReport, photo: Array, expected: Array, found: Mapping[str, Array], classes: Sequence[str]
) -> None:
    """Writes `parity.json` and `parity.html`.

    Args:
        photo: (H, W, 3) uint8 RGB.
        expected: (H, W) labels of torch in fp32.
        found: (H, W) labels of every engine, by its name.
    """
    (root / "parity.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (root / "parity.html").write_text(page(report, photo, expected, found, classes), encoding="utf-8")


def page(
    report: ParityReport, photo: Array, expected: Array, found: Mapping[str, Array], classes: Sequence[str]
) -> str:
    parts = [
        "<!doctype html><meta charset=utf-8><title>Parity</title>",
        f"<style>{STYLE}</style>",
        "<h1>Parity</h1><p>Every engine against PyTorch in fp32, on the same inputs.</p>",
        stage_table(report.stages),
        "<h2>Whole frames</h2>",
        "<p>The weights are random: labels mean nothing and are not judged.</p>" if report.random_weights else "",
        run_table(report),
        pictures(photo, expected, found, classes),
        "<h2>Limits</h2>",
        limit_table(report),
    ]
    return "\n".join(filter(None, parts)) + "\n"


def stage_table(rows: Iterable[StageParity]) -> str:
    head = ("stage", "engine", "relative RMS", "limit", "cosine", "limit", "max |error|", "")
    body = []
    for row in rows:
        limits = LIMITS[row.precision]
        cells = (
            row.stage,
            f"{row.backend} {row.precision}",
            f"{row.relative_rms_error:.1e}",
            f"{limits.relative_rms:.0e}",
            f"{row.cosine:.6f}",
            f"{limits.cosine}",
            f"{row.max_abs_error:.1e}",
        )
        body.append((cells, passes(row)))
    return table(head, body)


def run_table(report: ParityReport) -> str:
    head = ("engine", "pixels labelled alike", "limit", "mIoU on scenes", "fp32", "scenes", "")
    body = []
    for run in report.end_to_end:
        limits = LIMITS[run.precision]
        alike = run.agreement >= limits.agreement
        right = alike and (run.miou is None or (run.miou_reference or 0) - run.miou <= limits.miou_drop)
        scores = [f"{score:.2%}" if score is not None else "-" for score in (run.miou, run.miou_reference)]
        cells = (
            f"{run.backend} {run.precision}",
            f"{run.agreement:.3%}",
            f"{limits.agreement:.1%}",
            *scores,
            str(run.scenes),
        )
        body.append((cells, None if report.random_weights else right))
    return table(head, body)


def limit_table(report: ParityReport) -> str:
    head = ("precision", "relative RMS", "cosine", "pixels labelled alike", "mIoU below fp32")
    rows = [
        (name, f"{one['relative_rms']:.0e}", f"{one['cosine']}", f"{one['agreement']:.1%}", f"{one['miou_drop']:.1%}")
        for name, one in report.limits.items()
    ]
    return table(head, [(row, None) for row in rows])


def table(head: Sequence[str], body: Iterable[tuple[Sequence[str], bool | None]]) -> str:
    """Rows that did not pass stand out; None: there is nothing to pass."""
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(cell)}" for cell in head)]
    for cells, right in body:
        verdict = {True: "passes", False: "FAILS", None: None}[right]
        mark = " class=wrong" if right is False else ""
        last = f"<td class=verdict>{verdict}" if verdict else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + last)
    return "\n".join([*lines, "</table>"])


def pictures(photo: Array, expected: Array, found: Mapping[str, Array], classes: Sequence[str]) -> str:
    parts = []
    for name, labels in found.items():
        differs = labels != expected
        parts += [
            f"<h3>{html.escape(name)}</h3><div class=row>",
            figure(overlay(photo, expected, classes), "photo, and what PyTorch sees in it"),
            figure(color_map(expected, classes), "PyTorch fp32"),
            figure(color_map(labels, classes), name),
            figure(highlighted(photo, differs), f"differs in {differs.mean():.3%} of the pixels"),
            "</div>",
        ]
    return "\n".join(parts)


def highlighted(photo: Array, mask: Array) -> Array:
    """The photo in pale grey, the mask in red and a pixel wider, so that single pixels can be seen."""
    grey: Array = (photo.mean(axis=-1, keepdims=True) * 0.4 + 150).clip(0, 255).astype(np.uint8).repeat(3, axis=-1)
    wide = mask.copy()
    for axis in (0, 1):
        wide |= np.roll(mask, 1, axis) | np.roll(mask, -1, axis)
    grey[wide] = (220, 0, 0)
    return grey


def figure(pixels: Array, caption: str) -> str:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img src="data:image/png;base64,{data}"><figcaption>{html.escape(caption)}</figcaption></figure>'
