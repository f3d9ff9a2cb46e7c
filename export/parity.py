"""How far an engine is from torch float32, and how far it may be."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from runtime.engines.base import Array, Tensors
from runtime.errors import ParityError
from runtime.manifest import Precision, StageParity

# Relative RMS error of a stage's outputs. fp32 engines reorder sums; fp16 keeps ten bits.
LIMITS = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 1e-1}


def compare(stage: str, precision: Precision, backend: str, found: Tensors, expected: Tensors) -> StageParity:
    """The worst of a stage's outputs. Non-finite values count as infinitely wrong."""
    errors = [_errors(found[name], expected[name]) for name in expected]
    return StageParity(
        stage=stage,
        precision=precision,
        backend=backend,
        max_abs_error=max(error[0] for error in errors),
        relative_rms_error=max(error[1] for error in errors),
    )


def _errors(found: Array, expected: Array) -> tuple[float, float]:
    difference = found.astype(np.float64) - expected
    if found.shape != expected.shape or not np.isfinite(difference).all():
        return float("inf"), float("inf")
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) or 1.0
    return float(np.abs(difference).max()), float(np.sqrt(np.mean(difference**2))) / scale


def worst(parities: Iterable[StageParity]) -> list[StageParity]:
    """One row for each stage and engine, the worst of its calls."""
    rows: dict[tuple[str, str, str], StageParity] = {}
    for parity in parities:
        key = (parity.stage, parity.precision, parity.backend)
        if key not in rows or parity.relative_rms_error > rows[key].relative_rms_error:
            rows[key] = parity
    return list(rows.values())


def gate(parities: Iterable[StageParity]) -> None:
    """Raises ParityError for the first stage, in the order of the data, that is over its precision's limit."""
    for parity in parities:
        limit = LIMITS[parity.precision]
        if not parity.relative_rms_error <= limit:
            raise ParityError(
                f"stage {parity.stage}: {parity.backend} {parity.precision} differs from torch by "
                f"{parity.relative_rms_error:.2e} relative RMS, over {limit:.0e}; nothing was written"
            )
