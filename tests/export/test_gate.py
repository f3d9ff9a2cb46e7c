"""Faults are put into engines: the gate names the stage and the first tensor, and keeps what failed aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import random_photo, small_config, small_request

from export import gate, ladder, onnx_graphs, parity_report
from export.bisection import first_wrong
from export.builder import build_bundle
from export.random_weights import RandomWeights
from export.ranges import PREFIX, RangeEngine, with_maxima
from runtime.bundle import Bundle, new_bundle
from runtime.engines import open_engine
from runtime.errors import Dinov3SegError, ParityError
from runtime.manifest import EndToEnd
from runtime.parity import LIMITS


class TrainedWeights(RandomWeights):
    """Random weights that say they are not: whole frames are then judged too."""

    random = False


SMALLEST = {"config": small_config("early_refinement=none", "backbone.depth=1"), "refinement": False}


def build(target: Path, **changes: Any) -> None:
    with new_bundle(target) as folder:
        build_bundle(small_request(**SMALLEST | changes), folder)


def rejected(tmp_path: Path, **changes: Any) -> str:
    """Builds, and returns the refusal; nothing stands at the target, the failed bundle is kept aside."""
    with pytest.raises(ParityError) as caught:
        build(tmp_path / "bundle", **changes)
    assert caught.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["rejected"]
    kept = tmp_path / "rejected" / "bundle"
    message = str(caught.value)
    assert message.endswith(f"; kept aside in {kept}, see parity.html there")
    assert "\n" not in message
    assert not list(kept.rglob(".*"))
    assert (kept / "parity.html").is_file()
    assert (kept / "onnx" / "backbone.fp32.onnx").is_file()
    with pytest.raises(Dinov3SegError):
        Bundle.open(kept)
    return message


@pytest.fixture
def broken_engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces what the engines of one stage, and of its altered copies, give."""

    def install(stage: str, change: Callable[[np.ndarray], np.ndarray], precision: str = "fp32") -> None:
        def wrong(backend: Any, path: Path, typed: Any, threads: Any) -> Any:
            engine = open_engine(backend, path, typed, threads)
            if stage not in path.name or typed != precision:
                return engine
            return lambda inputs: {name: change(value) for name, value in engine(inputs).items()}

        monkeypatch.setattr(gate, "open_engine", wrong)

    return install


def test_an_engine_of_nan(broken_engine: Callable[..., None], tmp_path: Path) -> None:
    broken_engine("backbone", lambda value: np.where(np.arange(value.shape[-1]) == 3, np.nan, value))
    message = rejected(tmp_path)
    assert message.startswith(
        "stage backbone: onnxruntime fp32 differs from the reference by inf relative RMS (at most"
    )
    assert "the first tensor beyond that is the output " in message
    page = (tmp_path / "rejected" / "bundle" / "parity.html").read_text()
    assert "<tr class=wrong><td>backbone<td>onnxruntime fp32<td>inf" in page
    assert "FAILS" in page
    stages = json.loads((tmp_path / "rejected" / "bundle" / "parity.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == ["text_encoder", "backbone", "correlation"]


def test_an_engine_with_swapped_halves(broken_engine: Callable[..., None], tmp_path: Path) -> None:
    broken_engine("correlation", lambda value: value[:, ::-1].copy() if value.ndim == 4 else value)
    assert rejected(tmp_path).startswith("stage correlation: onnxruntime fp32 differs")


def test_the_first_wrong_stage_is_named(broken_engine: Callable[..., None], tmp_path: Path) -> None:
    broken_engine("", lambda value: value * np.float32(1.001))
    assert rejected(tmp_path).startswith("stage text_encoder: onnxruntime fp32")


def test_a_perturbed_weight_in_one_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer of the fp16 graph has another scale: the tensor behind it is the first that is wrong."""
    real, places = ladder.retype, []

    def perturbing(model: ir.Model, stage: str, to: Any, keep: frozenset[str] = frozenset()) -> None:
        real(model, stage, to, keep)
        if stage == "backbone":
            node = [node for node in model.graph if node.op_type == "MatMul" and "mlp" in onnx_graphs.module_of(node)][
                1
            ]
            weight = node.inputs[1]
            assert weight is not None
            assert weight.const_value is not None
            weight.const_value = ir.Tensor(weight.const_value.numpy() * np.float16(1.5), name=weight.name)
            places.append((node.outputs[0].name, onnx_graphs.module_of(node).replace(".", "/")))

    monkeypatch.setattr(ladder, "retype", perturbing)
    message = rejected(tmp_path, halves=("fp16",), runs=(("onnxruntime", "fp32"), ("onnxruntime", "fp16")))
    [(tensor, module)] = places
    assert message.startswith("stage backbone: onnxruntime fp16 differs")
    assert f"the first tensor beyond that is the output {tensor} of MatMul {module}/MatMul_" in message


def test_whole_frames_are_judged_for_trained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gate.run_whole_frames

    def worse(*arguments: Any) -> Any:
        rows, labels = real(*arguments)
        return [EndToEnd(**rows[0].model_dump() | {"agreement": 0.9})], labels

    monkeypatch.setattr(gate, "run_whole_frames", worse)
    build(tmp_path / "random")
    assert Bundle.open(tmp_path / "random").manifest.end_to_end[0].agreement == 0.9
    with pytest.raises(ParityError, match=r"^end to end, onnxruntime fp32 labels 90\.000% of the pixels"):
        build(tmp_path / "bundle", weights=TrainedWeights())


def test_a_second_failure_replaces_the_first(broken_engine: Callable[..., None], tmp_path: Path) -> None:
    broken_engine("backbone", lambda value: value + 1)
    rejected(tmp_path)
    (tmp_path / "rejected" / "bundle" / "stale").touch()
    rejected(tmp_path)
    assert not (tmp_path / "rejected" / "bundle" / "stale").exists()


def test_a_build_that_passes_keeps_nothing_aside(small_bundle: Path) -> None:
    assert not (small_bundle.parent / "rejected").exists()
    report = parity_report.ParityReport.model_validate_json((small_bundle / "parity.json").read_text())
    assert report.limits == {name: vars(limits) for name, limits in LIMITS.items()}
    assert report.stages == Bundle.open(small_bundle).manifest.parity
    page = (small_bundle / "parity.html").read_text()
    assert page.count("<img") == 4 * 3  # engines
    assert "FAILS" not in page
    assert 'src="http' not in page
    assert "labels mean nothing and are not judged" in page
    assert page.count("<td class=verdict>passes") == len(report.stages)  # no whole frame among them


# --- bisection


def graph(path: Path, body: str, weight: float = 2.0) -> Path:
    head = f"g (float[3] x) => (float[3] y) <float w = {{{weight}}}>"
    text = f'<ir_version: 10, opset_import: ["" : 20]> {head} {{ {body} }}'
    onnx.save(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)), path)
    return path


def opened(path: Path) -> Any:
    return open_engine("onnxruntime", path, "fp32", None)


BODY = "a = Relu(x) b = Mul(a, w) c = Add(b, a) d = Exp(c) y = Neg(d)"


def test_the_first_tensor_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = graph(tmp_path / "right.onnx", BODY), graph(tmp_path / "wrong.onnx", BODY, weight=2.1)
    inputs = {"x": np.array([0.5, 1, 2], np.float32)}
    for size in (1, 2, 48):
        monkeypatch.setattr("export.bisection.GROUP", size)
        found = first_wrong(opened, wrong, right, inputs, 1e-3)
        assert found is not None
        assert (found.tensor, found.node) == ("b", "Mul")
        assert found.error == pytest.approx(0.05, rel=1e-3)
    assert first_wrong(opened, right, right, inputs, 1e-3) is None
    assert first_wrong(opened, wrong, right, inputs, 0.5) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["right.onnx", "wrong.onnx"]


def test_values_that_only_one_graph_has_are_left_out(tmp_path: Path) -> None:
    right = graph(tmp_path / "right.onnx", BODY)
    fused = graph(tmp_path / "fused.onnx", "z = Relu(x) b = Mul(z, w) c = Add(b, z) d = Exp(c) y = Neg(d)", weight=3)
    found = first_wrong(opened, fused, right, {"x": np.ones(3, np.float32)}, 1e-3)
    assert found is not None
    assert found.tensor == "b"


def test_maxima_do_not_keep_their_values_alive(tmp_path: Path) -> None:
    """Each stands right behind its value: at the end of the graph, ViT-L would need 24 GB."""
    model = with_maxima(graph(tmp_path / "x.onnx", BODY))
    order = [node.output[0] for node in model.graph.node]
    for name in "abcdy":
        assert order.index(PREFIX + name) == order.index(name) + 2
    engine = RangeEngine(tmp_path / "x.onnx")
    engine({"x": np.array([-9, 1, 2], np.float32)})
    engine({"x": np.array([-9, 1, 1], np.float32)})
    assert engine.largest == pytest.approx({"x": 9, "a": 2, "b": 4, "c": 6, "d": np.exp(6), "y": np.exp(6)})


def test_a_range_that_is_no_number_is_not_forgotten(tmp_path: Path) -> None:
    engine = RangeEngine(graph(tmp_path / "x.onnx", "y = Mul(x, w)"))
    engine({"x": np.array([np.nan, 1, 2], np.float32)})
    engine({"x": np.array([3, 1, 2], np.float32)})
    assert np.isnan(engine.largest["x"])


def test_scenes_are_scored(small_bundle: Path) -> None:
    scene = random_photo(), np.zeros((48, 64), np.uint8)
    request = small_request(scenes=(scene, scene))
    asked: list[np.ndarray] = []

    def pipeline(image: np.ndarray, text: np.ndarray) -> Any:
        asked.append(image)
        labels = np.zeros((48, 64), np.uint8)
        labels[:12] = 1
        return type("Result", (), {"labels": labels})

    assert gate.mean_iou(request, pipeline, np.zeros((5, 2, 8))) == pytest.approx(0.75 / 2)  # type: ignore[arg-type]
    assert len(asked) == 2
