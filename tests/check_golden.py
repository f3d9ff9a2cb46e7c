"""Runs every golden file of a folder through our modules and prints the largest error of each.

    python tests/check_golden.py tests/golden

A file's class is the prefix of its name, its construction comes from its own metadata. Exits 1 if any output
is over tolerance or was not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import golden_anyup
import golden_catseg
import golden_dinotxt
import golden_dinov3
import golden_pipeline
import golden_sam
import golden_tokenizer
import torch
import typer
from golden_case import GoldenCase
from rich.console import Console
from rich.table import Table
from torch import Tensor

Tensors = dict[str, Tensor]
RUNNERS: dict[str, Callable[[GoldenCase], Tensors]] = {
    "dinov3_vit": golden_dinov3.run,
    "dinotxt": golden_dinotxt.run,
    "anyup": golden_anyup.run,
    "sam": golden_sam.run,
    "catseg": golden_catseg.run,
    "pipeline": golden_pipeline.run,
}


@dataclass(frozen=True)
class Row:
    file: str
    outputs: int
    worst: str
    error: float
    tolerance: float
    failures: tuple[str, ...]


def tolerance(kind: str, output: str) -> float:
    if kind == "pipeline":
        return golden_pipeline.tolerance(output)
    return 1e-3 if kind == "catseg" and "logits" in output else 2e-4


def largest_error(found: Tensor | None, expected: Tensor) -> float:
    if found is None or found.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    error = (found.double() - expected.double()).abs().max().item()
    return error if error == error else float("inf")


def check(path: Path) -> Row:
    """One file. An output is compared as a tensor, or as `golden_pipeline` says for label maps."""
    kind = next((kind for kind in RUNNERS if path.name.startswith(kind)), None)
    if kind is None:
        return Row(path.name, 0, "no model class starts with this name", float("inf"), 0.0, (path.name,))
    case = GoldenCase.read(path)
    with torch.inference_mode():
        found = RUNNERS[kind](case)
    compared = [name for name in case.outputs if not golden_pipeline.is_diagnostic(name)]
    errors = {name: largest_error(found.get(name), case.outputs[name]) for name in compared}
    if kind == "pipeline":
        errors |= golden_pipeline.label_errors(found, case)
    shares = {name: error / tolerance(kind, name) for name, error in errors.items()}
    worst = max(shares, key=lambda name: shares[name])
    failures = tuple(
        f"{name}: {errors[name]:.2e} > {tolerance(kind, name):.0e}" for name, share in shares.items() if not share <= 1
    )
    return Row(path.name, len(errors), worst, errors[worst], tolerance(kind, worst), failures)


def check_tokenizer(path: Path) -> Row:
    cases, mismatches = golden_tokenizer.run(path)
    failures = (f"{mismatches} of {cases} texts give other ids",) if mismatches or not cases else ()
    return Row(path.name, cases, "ids", float(mismatches), 0.0, failures)


def main(folder: Path) -> None:
    """Checks every golden file of FOLDER."""
    rows = [check(path) for path in sorted(folder.glob("*.safetensors"))]
    rows += [check_tokenizer(path) for path in sorted(folder.glob("tokenizer*.json"))]
    table = Table("file", "outputs", "output closest to its tolerance", "max abs error", "tolerance", "")
    for row in rows:
        verdict = "[red]FAIL" if row.failures else "[green]ok"
        table.add_row(row.file, str(row.outputs), row.worst, f"{row.error:.1e}", f"{row.tolerance:.0e}", verdict)
    console = Console(width=130)
    console.print(table)
    for row in rows:
        for failure in row.failures:
            console.print(f"{row.file}: {failure}", style="red", highlight=False)
    if not rows:
        console.print(f"no golden files in {folder}", style="red")
    raise typer.Exit(1 if not rows or any(row.failures for row in rows) else 0)


if __name__ == "__main__":
    typer.run(main)
