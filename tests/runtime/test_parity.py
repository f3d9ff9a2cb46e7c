"""The numbers of the gate, and where it closes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.errors import ParityError
from runtime.manifest import EndToEnd, StageParity
from runtime.parity import LIMITS, compare, gate_end_to_end, objection, passes, worst


def measured(found: np.ndarray, expected: np.ndarray) -> StageParity:
    return compare("x", "fp32", "onnxruntime", {"y": found}, {"y": expected})


def test_parity_numbers() -> None:
    expected = np.array([3.0, -4.0, 0.0, 0.0], np.float32)
    row = measured(expected + np.array([0, 0, 0.5, 0], np.float32), expected)
    assert row.max_abs_error == 0.5
    assert row.relative_rms_error == pytest.approx(0.5 / 5)
    assert row.cosine == pytest.approx(25 / (5 * np.sqrt(25.25)))
    assert measured(expected, expected).max_abs_error == 0
    assert measured(np.full(4, 0.25), np.zeros(4)).relative_rms_error == 0.25
    assert measured(np.zeros(4), np.zeros(4)).cosine == 1
    assert measured(-expected, expected).cosine == pytest.approx(-1)


@pytest.mark.parametrize("found", [np.array([1, np.nan]), np.array([1, np.inf]), np.array([[1.0, 2.0]])])
def test_parity_of_what_cannot_be_compared_is_infinite(found: np.ndarray) -> None:
    row = measured(found, np.array([1.0, 2.0]))
    assert row.relative_rms_error == row.max_abs_error == float("inf")
    assert not passes(row)


def test_a_missing_output_is_an_error() -> None:
    with pytest.raises(KeyError):
        compare("x", "fp32", "onnxruntime", {}, {"y": np.ones(2)})


def row(precision: Any, error: float, cosine: float = 1.0) -> StageParity:
    return StageParity(
        stage="b",
        precision=precision,
        backend="openvino",
        max_abs_error=error,
        relative_rms_error=error,
        cosine=cosine,
    )


@pytest.mark.parametrize("precision", LIMITS)
def test_limits(precision: Any) -> None:
    limits = LIMITS[precision]
    assert passes(row(precision, limits.relative_rms, limits.cosine))
    assert not passes(row(precision, limits.relative_rms * 1.1))
    assert not passes(row(precision, float("nan")))
    assert not passes(row(precision, 0, limits.cosine - 1e-6))
    assert not passes(row(precision, 0, float("nan")))
    assert objection(row(precision, 1.0)).startswith(f"stage b: openvino {precision} differs from the reference by 1.0")


def test_limits_widen_with_fewer_bits() -> None:
    for finer, coarser in ((LIMITS["fp32"], LIMITS["fp16"]), (LIMITS["fp16"], LIMITS["bf16"])):
        assert finer.relative_rms < coarser.relative_rms
        assert finer.cosine > coarser.cosine
        assert finer.agreement > coarser.agreement
        assert finer.miou_drop < coarser.miou_drop


def test_the_worst_of_several_calls() -> None:
    rows = [row("fp32", 1.0), row("fp32", float("nan")), row("fp32", 2.0), row("fp16", 0.5)]
    found = worst(rows[:1] + rows[2:])
    assert [(one.precision, one.max_abs_error) for one in found] == [("fp32", 2.0), ("fp16", 0.5)]
    assert not passes(worst(rows[:2])[0])


def run(**changes: Any) -> EndToEnd:
    fields: dict[str, Any] = {"backend": "openvino", "precision": "fp16", "agreement": 0.999}
    return EndToEnd(**fields | changes)


def test_whole_frames() -> None:
    gate_end_to_end([run(), run(agreement=0.995), run(miou=0.6, miou_reference=0.6049, scenes=8)])
    gate_end_to_end([run(miou=0.7, miou_reference=0.6, scenes=8)])
    with pytest.raises(ParityError, match=r"openvino fp16 labels 99\.400% of the pixels as .*99\.5%"):
        gate_end_to_end([run(), run(agreement=0.994)])
    with pytest.raises(ParityError, match=r"scores 59\.00% mIoU on 8 scenes, 1\.00% below fp32; at most 0\.5%"):
        gate_end_to_end([run(miou=0.59, miou_reference=0.6, scenes=8)])
    with pytest.raises(ParityError):
        gate_end_to_end([run(agreement=float("nan"))])
