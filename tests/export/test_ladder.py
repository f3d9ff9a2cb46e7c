"""fp16 where it holds: what overflows moves, alone and by name; what silently stays fp32 is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from small_models import CLASSES, random_photo, small_request

from export import graph_flops, ladder, onnx_graphs, precision, rounding
from export.builder import build_bundle
from export.ladder import Call, Evidence
from export.random_weights import RandomWeights
from export.ranges import RangeEngine
from runtime import parity
from runtime.bundle import Bundle, new_bundle
from runtime.errors import ExportError
from runtime.segmenter import Segmenter


def evidence_of(graph: Path, stage: str, scale_inputs: float = 1.0) -> Evidence:
    """Ranges and reference outputs of a graph on random inputs of the shapes of the small model."""
    rng = np.random.default_rng(0)
    shapes = {v.name: [axis.dim_value or 5 for axis in v.type.tensor_type.shape.dim] for v in inputs_of(graph)}
    inputs = {name: scale_inputs * rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    engine = RangeEngine(graph)
    expected = engine(inputs)
    return Evidence(stage, graph, [Call(inputs, expected)], engine.largest, True)


def inputs_of(graph: Path) -> list[onnx.ValueInfoProto]:
    return list(onnx.load(graph, load_external_data=False).graph.input)


@pytest.fixture
def altered(small_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A stage's fp32 graph with some weights scaled."""

    def alter(stage: str, scales: dict[str, float]) -> Path:
        model = onnx_graphs.load(small_bundle / "onnx" / f"{stage}.fp32.onnx")
        for node in model.graph:
            for value in node.inputs:
                key = f"{onnx_graphs.module_of(node)} {node.op_type}"
                if value is not None and value.const_value is not None and key in scales:
                    array = value.const_value.numpy() * np.float32(scales[key])
                    value.const_value = ir.Tensor(array, name=value.name)
        path = tmp_path / f"{stage}.fp32.onnx"
        onnx_graphs.save(model, path)
        return path

    return alter


def mlp_keys(small_bundle: Path) -> dict[str, str]:
    """ "lin1" and "lin2" of one block -> the key of their matrix product."""
    model = onnx_graphs.load(small_bundle / "onnx" / "sam_encoder.fp32.onnx")
    modules = {onnx_graphs.module_of(node) for node in model.graph if node.op_type == "MatMul"}
    found = sorted(module for module in modules if "blocks.0.mlp" in module)
    assert [module.rpartition(".")[2] for module in found] == ["lin1", "lin2"]
    return {module.rpartition(".")[2]: f"{module} MatMul" for module in found}


def test_a_block_that_overflows_moves_alone(small_bundle: Path, altered: Callable[..., Path], tmp_path: Path) -> None:
    keys = mlp_keys(small_bundle)
    graph = altered("sam_encoder", {keys["lin1"]: 1e5, keys["lin2"]: 1e-5})
    settled = ladder.settle(evidence_of(graph, "sam_encoder"), "fp16", tmp_path)
    got = settled.precision
    assert got.got == "fp16"
    assert got.regions
    assert all("blocks.0.mlp" in region for region in got.regions)
    assert "blocks.0.mlp.lin1 reaches" in got.reason
    assert got.flops["fp16"] > 0.6
    # The typed graph is right where plain fp16 is not a number.
    [call] = evidence_of(graph, "sam_encoder").calls
    plain = ladder.rounded_errors(replace(evidence_of(graph, "sam_encoder"), calls=[call]), "fp16", frozenset())
    assert plain[0].relative_rms_error == float("inf")
    assert max(row.relative_rms_error for row in settled.parities) < 1e-2
    with pytest.raises(ExportError, match=r"stage sam_encoder: fp16 does not hold \(input of MatMul .* --strict"):
        ladder.check_strict([("sam_encoder", got)])


def test_a_stage_that_overflows_everywhere_becomes_bf16(small_bundle: Path, tmp_path: Path) -> None:
    graph = small_bundle / "onnx" / "decoder.fp32.onnx"
    copied = tmp_path / graph.name
    model = onnx_graphs.load(graph)
    onnx_graphs.save(model, copied)
    settled = ladder.settle(evidence_of(copied, "decoder", scale_inputs=1e6), "fp16", tmp_path)
    assert settled.precision.got == "bf16"
    assert "reaches" in settled.precision.reason
    assert settled.precision.flops["bf16"] > 0.8
    assert settled.precision.islands["ConvTranspose"] == 2  # which TensorRT does not compute in bf16
    onnx.checker.check_model(tmp_path / "decoder.bf16.onnx", full_check=True)
    assert not list(tmp_path.glob(".*"))


def test_an_input_beyond_fp16_is_cast_later(tmp_path: Path) -> None:
    """Only on a calibration image, not in the compared call: what reads the input stays in fp32 and makes it small."""
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[4, 8] x) => (float[4, 8] y)
        <float small = {1e-5}, float[8, 8] w> { a = Mul(x, small) b = MatMul(a, w) y = MatMul(b, w) }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    del model.graph.initializer[:]
    weights = {"small": np.float32(1e-3), "w": rng.standard_normal((8, 8)).astype(np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in weights.items())
    graph = tmp_path / "x.fp32.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), graph)
    engine, near = RangeEngine(graph), rng.standard_normal((4, 8)).astype(np.float32)
    call = Call({"x": near}, engine({"x": near}))
    engine({"x": 1e5 * near})
    settled = ladder.settle(Evidence("x", graph, [call], engine.largest, True), "fp16", tmp_path)
    assert (settled.precision.got, settled.precision.islands) == ("fp16", {"Mul": 1})
    assert settled.precision.reason.startswith("input of Mul x reaches ")


def test_what_torch_cannot_do_in_half_is_not_trusted(small_bundle: Path, tmp_path: Path) -> None:
    graph = tmp_path / "decoder.fp32.onnx"
    onnx_graphs.save(onnx_graphs.load(small_bundle / "onnx" / graph.name), graph)
    doubtful = replace(evidence_of(graph, "decoder"), half_is_finite=False)
    settled = ladder.settle(doubtful, "fp16", tmp_path)
    assert (settled.precision.got, settled.precision.reason) == ("bf16", "torch in half precision is not finite")


def test_neither_half_is_near_enough(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tmp_path / "decoder.fp32.onnx"
    onnx_graphs.save(onnx_graphs.load(small_bundle / "onnx" / graph.name), graph)
    tight = {name: replace(limits, relative_rms=1e-9) for name, limits in parity.LIMITS.items()}
    monkeypatch.setattr(ladder, "LIMITS", tight)
    settled = ladder.settle(evidence_of(graph, "decoder"), "fp16", tmp_path)
    assert settled.graph is None
    assert settled.precision.got == "fp32"
    assert [part.split()[0] for part in settled.precision.reason.split("; ")] == ["fp16", "bf16"]


def test_a_graph_that_silently_stays_fp32_is_refused(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = tmp_path / "decoder.fp32.onnx"
    onnx_graphs.save(onnx_graphs.load(small_bundle / "onnx" / graph.name), graph)
    monkeypatch.setattr(ladder, "retype", lambda *arguments: None)
    with pytest.raises(ExportError, match="stage decoder: the fp16 graph computes 100% fp32; expected fp16"):
        ladder.settle(evidence_of(graph, "decoder"), "fp16", tmp_path)


def test_flops_are_read_from_shapes(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 10] y)
        <float[4, 3, 3, 3] w = {0}, float[6, 10] m = {0}>
        { a = Conv(x, w) h = Cast<to = 10>(a) mh = Cast<to = 10>(m) b = MatMul(h, mh) y = Cast<to = 1>(b) }"""
    model = onnx.parser.parse_model(text)
    for tensor in model.graph.initializer:
        tensor.ClearField("float_data")
        tensor.raw_data = np.zeros(tuple(tensor.dims), np.float32).tobytes()
    path = tmp_path / "g.onnx"
    onnx.save(model, path)
    shares = graph_flops.flop_shares(path, {"x": np.zeros((2, 3, 8, 8), np.float32)})
    convolution, product = 2 * (2 * 4 * 6 * 6) * 27, 2 * (2 * 4 * 6 * 10) * 6
    assert shares == pytest.approx(
        {"fp32": convolution / (convolution + product), "fp16": 1 - convolution / (convolution + product)}
    )


@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "body",
    [
        "y = Mul(x, w)",
        "a = Mul(x, w) b = Sqrt(a) c = Add(b, x) y = Relu(c)",
        "a = Relu(x) b = Sqrt(a) c = Sqrt(b) y = Mul(b, c)",
        "a = Relu(x) y = Sqrt(a)",
    ],
)
def test_rounding_does_what_the_typed_graph_does(body: str, to: str) -> None:
    """Against ONNX's own evaluator, which computes in the types of the graph."""
    values = "<float[3] w = {1.2345, 3.1, 7}>"
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[3] x) => (float[3] y) {values} {{ {body} }}'
    load = lambda: ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))  # noqa: E731
    typed, rounded = load(), load()
    precision.retype(typed, "x", to)
    rounding.round_values(rounded, to)
    x = np.array([0.1, 1.7, 300.3], np.float32)
    [expected] = onnx.reference.ReferenceEvaluator(ir.to_proto(typed)).run(None, {"x": x})
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(rounded).SerializeToString(), options)
    [found] = session.run(None, {"x": x})
    assert found.tolist() == expected.astype(np.float32).tolist()


def test_rounding_overflows_as_a_gpu_does() -> None:
    """300 squared is over fp16's range, its root is not."""
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[1] x) => (float[1] y) { a = Mul(x, x) y = Sqrt(a) }'
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    rounding.round_values(model, "fp16")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    assert session.run(None, {"x": np.array([300], np.float32)})[0].tolist() == [float("inf")]


class OverflowingGuidance(RandomWeights):
    """The guidance encoder's residual stream leaves fp16's range at the first block."""

    def fill(self, module, part):  # type: ignore[no-untyped-def]
        super().fill(module, part)
        if part == "guidance":
            embedding = module.image_encoder.pos_embed.data
            embedding.fill_(3e5)[..., ::2] *= -1


def test_a_bundle_with_a_stage_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "mostly_half", lambda model, keep: False)
    request = small_request(
        weights=OverflowingGuidance(), halves=("fp16",), runs=(("onnxruntime", "fp32"), ("onnxruntime", "fp16"))
    )
    with (
        pytest.raises(ExportError, match="stage sam_encoder: fp16 does not hold"),
        new_bundle(tmp_path / "x") as folder,
    ):
        build_bundle(replace(request, strict=True), folder)
    assert not list(tmp_path.iterdir())
    said: list[str] = []
    request = replace(request, calibration=(random_photo(seed=1),), announce=said.append)
    with new_bundle(tmp_path / "bundle") as folder:
        build_bundle(request, folder)
    assert "ranges of all values: image 2 of 2" in said
    bundle = Bundle.open(tmp_path / "bundle")
    got = {stage.name: stage.typed("fp16") for stage in bundle.manifest.stages}
    assert got.pop("sam_encoder") == "bf16"
    assert got.pop("text_encoder") == "fp32"
    assert got["backbone"] == got["anyup"] == "fp16"  # what comes before the guidance is not touched
    with pytest.warns(UserWarning, match="random weights"):
        segmenter = Segmenter.load(bundle.root, CLASSES, precision="fp16", cache_dir=None)
    with segmenter:
        assert segmenter.precision["sam_encoder"] == "fp32"
        assert "fp16" in segmenter.precision["backbone"]
        assert segmenter(random_photo()).labels.shape == (48, 64)
