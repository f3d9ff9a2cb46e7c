"""Engines on a device that is late (a fake one) are compared with ONNX Runtime; those that differ are put aside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import CLASSES, random_photo
from test_tensorrt import device, on_device, one_logger_a_test  # noqa: F401 (fixtures)

from export import engine_search
from runtime import engine_gate
from runtime.bundle import Bundle
from runtime.engine_gate import check_engines
from runtime.engines.tensorrt_build import Job, build
from runtime.engines.tensorrt_library import Library
from runtime.errors import EngineError, ParityError
from runtime.parity import LIMITS
from runtime.segmenter import Segmenter


def check(bundle: Bundle) -> Bundle:
    return check_engines(bundle, "tensorrt", "fp16", random_photo(), CLASSES)


def test_engines_that_pass_are_recorded(on_device: tuple[Bundle, Library]) -> None:  # noqa: F811
    before = on_device[0]
    check(check(before))
    manifest = Bundle.open(before.root).manifest
    rows = [row for row in manifest.parity if row.backend == "tensorrt"]
    assert [row.stage for row in rows] == [stage.name for stage in manifest.stages]
    assert [row.precision for row in rows] == ["fp32", *["fp16"] * (len(rows) - 1)]  # the text encoder
    assert all(0 < row.relative_rms_error < 3e-2 for row in rows[1:])
    assert rows[0].relative_rms_error < 1e-4
    assert len(manifest.parity) == len(before.manifest.parity) + len(rows)
    assert [run.backend for run in manifest.end_to_end].count("tensorrt") == 1
    assert manifest.engines == before.manifest.engines


def test_engines_are_scored_on_scenes(
    on_device: tuple[Bundle, Library],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the export was, and against its score."""
    monkeypatch.setitem(LIMITS, "fp16", replace(LIMITS["fp16"], agreement=0.9))  # labels of random weights are noise
    manifest = on_device[0].manifest
    first = manifest.end_to_end[0].model_copy(update={"miou": 0.5, "miou_reference": 0.5, "scenes": 8})
    trained = manifest.model_copy(update={"random_weights": False, "end_to_end": (first,)})
    bundle = Bundle(on_device[0].root, trained)
    scored: list[np.ndarray] = []

    def score(pipeline: Any, embedder: Any) -> float:
        scored.append(pipeline(random_photo(), embedder.embed(CLASSES)).labels)
        return 0.498

    run = check_engines(bundle, "tensorrt", "fp16", random_photo(), CLASSES, score=score).manifest.end_to_end[-1]
    assert (run.miou, run.miou_reference, run.scenes) == (0.498, 0.5, 8)
    assert [labels.shape for labels in scored] == [(48, 64)]
    with pytest.raises(
        ParityError, match=r"tensorrt fp16 scores 40\.00% mIoU on 8 scenes, 10\.00% below fp32"
    ) as caught:
        check_engines(bundle, "tensorrt", "fp16", random_photo(), CLASSES, score=lambda pipeline, embedder: 0.4)
    assert caught.value.stage == ""


def test_the_first_wrong_tensor_of_an_engine(
    on_device: tuple[Bundle, Library],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One product of the backbone is miscompiled, in the altered engines too."""
    bundle, library = on_device
    places = []

    def miscompiled(job: Job) -> Any:
        model = onnx.load(job.graph)
        node = [node for node in model.graph.node if node.op_type == "MatMul" and "mlp" in node.name][1]
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
        array = onnx.numpy_helper.to_array(weight) * np.float16(1.5)
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
        places.append((node.output[0], node.name))
        graph = job.plan.with_name(f"{len(places)}.onnx")
        onnx.save(model, graph)
        return build(job.model_copy(update={"graph": graph}), library)

    monkeypatch.setattr(engine_search, "build_engine", miscompiled)
    search = lambda stage: engine_search.search_engine(bundle, stage, "tensorrt", "fp16", (), random_photo())  # noqa: E731
    found = search("backbone")
    tensor, place = places[0][0], places[0][1].rpartition("_")[0]
    assert found.startswith(f"the first tensor beyond that is the output {tensor} of MatMul {place}_")
    assert found.endswith(" (5.0e-01)")
    monkeypatch.setattr(engine_search, "build_engine", lambda job: build(job, library))
    assert search("text_encoder") == search("decoder") == engine_search.NOTHING
    assert not list(bundle.root.rglob(".*"))


@pytest.mark.parametrize("stage", ["backbone", "decoder", "text_encoder"])
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
    typed = "fp32" if stage == "text_encoder" else "fp16"
    with pytest.raises(ParityError, match=f"stage {stage}: tensorrt {typed} differs .*kept aside in {aside}") as caught:
        check(bundle)
    assert (caught.value.exit_code, caught.value.stage) == (3, stage)
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
