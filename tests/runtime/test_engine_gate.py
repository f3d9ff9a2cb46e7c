"""Engines on a device that is late (a fake one) are compared with ONNX Runtime; those that differ are put aside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_models import CLASSES, random_photo
from test_tensorrt import device, on_device, one_logger_a_test  # noqa: F401 (fixtures)

from runtime import engine_gate
from runtime.bundle import Bundle
from runtime.engine_gate import check_engines
from runtime.engines.tensorrt_library import Library
from runtime.errors import EngineError, ParityError
from runtime.segmenter import Segmenter


def check(bundle: Bundle) -> Bundle:
    return check_engines(bundle, "tensorrt", "fp16", random_photo(), CLASSES)


def test_engines_that_pass_are_recorded(on_device: tuple[Bundle, Library]) -> None:  # noqa: F811
    before = on_device[0]
    check(check(before))
    manifest = Bundle.open(before.root).manifest
    rows = [row for row in manifest.parity if row.backend == "tensorrt"]
    assert [row.stage for row in rows] == [stage.name for stage in manifest.stages[1:]]
    assert {row.precision for row in rows} == {"fp16"}
    assert all(0 < row.relative_rms_error < 3e-2 for row in rows)
    assert len(manifest.parity) == len(before.manifest.parity) + len(rows)
    assert [run.backend for run in manifest.end_to_end].count("tensorrt") == 1
    assert manifest.engines == before.manifest.engines


@pytest.mark.parametrize("stage", ["backbone", "decoder"])
def test_an_engine_that_differs_is_put_aside(
    stage: str,
    on_device: tuple[Bundle, Library],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = on_device[0]
    real = engine_gate.open_stage

    def wrong(opened: Bundle, name: str, backend: Any, *rest: Any) -> Any:
        engine = real(opened, name, backend, *rest)
        if (name, backend) != (stage, "tensorrt"):
            return engine
        return lambda inputs: {key: np.roll(value, 1, -1) for key, value in engine(inputs).items()}

    monkeypatch.setattr(engine_gate, "open_stage", wrong)
    aside = bundle.root / "rejected"
    with pytest.raises(ParityError, match=f"stage {stage}: tensorrt fp16 differs .*kept aside in {aside}") as caught:
        check(bundle)
    assert caught.value.exit_code == 3
    after = Bundle.open(bundle.root)
    assert after.manifest.engines == ()
    assert after.manifest.parity == bundle.manifest.parity
    assert len(list(aside.rglob("*.engine"))) == len(bundle.manifest.engines)
    assert not list((bundle.root / "engines").rglob("*.engine"))
    with (
        pytest.warns(UserWarning, match="random weights"),
        pytest.raises(EngineError, match="has no tensorrt engine for stage backbone in fp16; run python"),
    ):
        Segmenter.load(bundle.root, CLASSES, backend="tensorrt", cache_dir=None)
