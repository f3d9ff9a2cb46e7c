"""How far an engine may be from the reference, how far it is, and the gate between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from runtime.engines.base import Array, Tensors
from runtime.errors import ParityError
from runtime.manifest import EndToEnd, Precision, StageParity


@dataclass(frozen=True)
class Limits:
    """For one precision. End to end they hold for trained weights: labels of random ones are noise.

    Attributes:
        relative_rms: Most relative RMS error of a stage's outputs.
        cosine: Least cosine between a stage's outputs and the reference's.
        agreement: Least share of pixels labelled alike.
        miou_drop: Most that the mean IoU on scenes with ground truth may be below fp32's, as a share.
    """

    relative_rms: float
    cosine: float
    agreement: float
    miou_drop: float


# fp32 engines reorder sums; fp16 keeps ten bits, bf16 seven.
LIMITS: Final[dict[Precision, Limits]] = {
    "fp32": Limits(relative_rms=1e-4, cosine=0.99999, agreement=0.999, miou_drop=0.002),
    "fp16": Limits(relative_rms=3e-2, cosine=0.999, agreement=0.995, miou_drop=0.005),
    "bf16": Limits(relative_rms=1e-1, cosine=0.99, agreement=0.98, miou_drop=0.02),
}


def compare(stage: str, precision: Precision, backend: str, found: Tensors, expected: Tensors) -> StageParity:
    """The worst of a stage's outputs. Non-finite values count as infinitely wrong."""
    rows = [errors(found[name], expected[name]) for name in expected]
    return StageParity(
        stage=stage,
        precision=precision,
        backend=backend,
        max_abs_error=max(row[0] for row in rows),
        relative_rms_error=max(row[1] for row in rows),
        cosine=min(row[2] for row in rows),
    )


def errors(found: Array, expected: Array) -> tuple[float, float, float]:
    """Largest absolute error, relative RMS error, cosine; (inf, inf, -1) for what cannot be compared."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf"), float("inf"), -1.0
    given, wanted = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    difference = given - wanted
    scale = float(np.sqrt(np.mean(wanted**2))) or 1.0
    lengths = float(np.linalg.norm(given) * np.linalg.norm(wanted))
    cosine = float(given @ wanted) / lengths if lengths else float(np.array_equal(given, wanted))
    return float(np.abs(difference).max(initial=0)), float(np.sqrt(np.mean(difference**2))) / scale, cosine


def worst(parities: Iterable[StageParity]) -> list[StageParity]:
    """One row for each stage and engine, the worst of its calls."""
    rows: dict[tuple[str, str, str], StageParity] = {}
    for parity in parities:
        key = (parity.stage, parity.precision, parity.backend)
        if key not in rows or not parity.relative_rms_error <= rows[key].relative_rms_error:
            rows[key] = parity
    return list(rows.values())


def passes(parity: StageParity) -> bool:
    limits = LIMITS[parity.precision]
    return parity.relative_rms_error <= limits.relative_rms and parity.cosine >= limits.cosine


def objection(parity: StageParity) -> str:
    """One line on a stage that does not pass."""
    limits = LIMITS[parity.precision]
    return (
        f"stage {parity.stage}: {parity.backend} {parity.precision} differs from the reference by "
        f"{parity.relative_rms_error:.2e} relative RMS (at most {limits.relative_rms:.0e}), cosine {parity.cosine:.5f} "
        f"(at least {limits.cosine})"
    )


def gate_end_to_end(runs: Iterable[EndToEnd]) -> None:
    """Raises ParityError for the first engine that labels too many pixels otherwise, or scores too low."""
    for run in runs:
        limits, name = LIMITS[run.precision], f"{run.backend} {run.precision}"
        if not run.agreement >= limits.agreement:
            raise ParityError(
                f"end to end, {name} labels {run.agreement:.3%} of the pixels as the reference does, expected at least "
                f"{limits.agreement:.1%}"
            )
        if run.miou is not None and run.miou_reference is not None:
            drop = run.miou_reference - run.miou
            if not drop <= limits.miou_drop:
                raise ParityError(
                    f"end to end, {name} scores {run.miou:.2%} mIoU on {run.scenes} scenes, {drop:.2%} below fp32; "
                    f"at most {limits.miou_drop:.1%} is allowed"
                )
