"""Half-precision graphs: the type is in the file, islands stay fp32, and weights that do not fit are refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto
from onnx_ir import DataType

from export import onnx_graphs, precision
from runtime.errors import ExportError

STAGES = ("backbone", "anyup", "correlation", "sam_encoder", "refinement", "decoder")
HEAVY = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Softmax", "Gelu", "Gather"}
# Written out again: an island that is taken off the list in the code must show here.
ISLANDS = {"LayerNormalization", "InstanceNormalization", "ReduceL2", "ReduceMean", "Div", "Sqrt"}
NAMES = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}


def inferred(path: Path) -> tuple[onnx.GraphProto, dict[str, str]]:
    """The graph, and the floating type of every value as ONNX infers it from the file: not what we believe."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True)
    graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return graph, {name: NAMES[kind] for name, kind in types.items() if kind in NAMES}


def in_fp32_module(node: onnx.NodeProto) -> bool:
    return any(entry.key == "module" and "key_features_encoder" in entry.value for entry in node.metadata_props)


@pytest.mark.parametrize("stage", STAGES)
def test_heavy_nodes_compute_in_fp16(stage: str, small_bundle: Path) -> None:
    graph, types = inferred(small_bundle / "onnx" / f"{stage}.fp16.onnx")
    heavy = [node for node in graph.node if node.op_type in HEAVY and not in_fp32_module(node)]
    assert {node.op_type: {types[name] for name in (*node.input, *node.output) if name in types} for node in heavy} == {
        node.op_type: {"fp16"} for node in heavy
    }
    assert heavy


@pytest.mark.parametrize("stage", STAGES)
def test_islands_compute_in_fp32(stage: str, small_bundle: Path) -> None:
    graph, types = inferred(small_bundle / "onnx" / f"{stage}.fp16.onnx")
    islands = [node for node in graph.node if node.op_type in ISLANDS | set(precision.FP32_ISLANDS)]
    islands += [node for node in graph.node if in_fp32_module(node) and node.op_type != "Cast"]
    assert all(types[name] == "fp32" for node in islands for name in (*node.input, *node.output) if name in types)


@pytest.mark.parametrize("stage", STAGES)
def test_inputs_and_outputs_stay_float32(stage: str, small_bundle: Path) -> None:
    for session in (
        onnxruntime.InferenceSession(small_bundle / "onnx" / f"{stage}.{kind}.onnx") for kind in ("fp32", "fp16")
    ):
        kinds = {value.type for value in (*session.get_inputs(), *session.get_outputs())}
        assert kinds == {"tensor(float)"}


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"correlation"}))
def test_weights_are_stored_as_fp16(stage: str, small_bundle: Path) -> None:
    graph, _ = inferred(small_bundle / "onnx" / f"{stage}.fp16.onnx")
    sizes: Counter[int] = Counter()
    for tensor in graph.initializer:
        sizes[tensor.data_type] += int(np.prod(tensor.dims))
    assert sizes[TensorProto.FLOAT16] > (5 if stage == "anyup" else 20) * sizes[TensorProto.FLOAT]
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used


@pytest.mark.parametrize("stage", STAGES)
def test_the_counts_that_are_reported_are_true(stage: str, small_bundle: Path) -> None:
    path = small_bundle / "onnx" / f"{stage}.fp16.onnx"
    graph, types = inferred(path)
    expected = Counter(types[name] for node in graph.node for name in node.output if name in types)
    model = onnx_graphs.load(path)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in types:
                value.dtype = DataType.FLOAT if types[value.name] == "fp32" else DataType.FLOAT16
    assert precision.dtype_counts(model) == expected
    assert set(expected) == {"fp16", "fp32"}


def scaled_by(weight: float, *, through_norm: bool = False) -> ir.Model:
    """y = x * weight, or y = LayerNormalization(x) with that weight."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[2, 4] x) => (float[2, 4] y)
        <float[4] weight = {{1, {weight}, 3, 4}}>
        {{ y = {"LayerNormalization" if through_norm else "Mul"}(x, weight) }}
    """
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


@pytest.mark.parametrize("weight", [70000.0, -70000.0, float("inf")])
def test_a_weight_beyond_fp16_is_refused(weight: float) -> None:
    model = scaled_by(2.0)
    value = model.graph.initializers["weight"]
    value.const_value = ir.tensor(np.array([1, weight, 3, 4], np.float32), name="weight")
    with pytest.raises(
        ExportError, match=r"stage decoder: weight holds (7e\+04|inf), over fp16's 65504; .*--engine fp32"
    ):
        precision.retype(model, "decoder", "fp16")


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"x": x})[0]


def test_the_largest_fp16_number_is_kept() -> None:
    model = scaled_by(65504.0)
    precision.retype(model, "x", "fp16")
    assert run(model, np.full((2, 4), 0.5, np.float32))[0].tolist() == [0.5, 32752.0, 1.5, 2.0]


def test_an_island_may_hold_weights_beyond_fp16() -> None:
    model = scaled_by(70000.0, through_norm=True)
    precision.retype(model, "x", "fp16")
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    normed = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    assert run(model, x) == pytest.approx(normed * [1, 70000, 3, 4], rel=2e-3)


def converted(text: str) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    precision.retype(model, "x", "fp16")
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(x)",
        "a = Sqrt(x) y = Relu(a)",
        "a = Relu(x) y = Sqrt(a)",
        "a = Sqrt(x) b = Sqrt(a) y = Mul(a, b)",
        "a = Relu(x) b = Sqrt(a) c = Sqrt(a) y = Add(b, c)",
        "a = Relu(x) b = Sqrt(x) y = Add(a, b)",
        "a = Cast<to = 7>(x) b = Cast<to = 1>(a) y = Add(b, x)",
        "one = Constant<value = float[1] {1.5}>() y = Add(x, one)",
    ],
)
def test_small_graphs_keep_their_meaning(body: str) -> None:
    text = f"g (float[2, 3] x) => (float[2, 3] y) {{ {body} }}"
    x = np.random.default_rng(0).uniform(0.5, 4, (2, 3)).astype(np.float32)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    assert run(converted(text), x) == pytest.approx(expected, rel=2e-3)


def test_an_island_output_that_is_also_used_in_the_graph() -> None:
    text = "g (float[2] x) => (float[2] y, float[2] z) { y = Sqrt(x) z = Relu(y) }"
    model = converted(text)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    y, z = session.run(None, {"x": np.array([4, 2], np.float32)})
    assert y.tolist() == np.sqrt(np.array([4, 2], np.float32)).tolist()  # fp32 all the way
    assert z == pytest.approx(y, rel=1e-3)


def test_named_nodes_stay_in_fp32() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Mul(x, x) b = Relu(a) y = Mul(b, x) }"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    precision.retype(model, "x", "bf16", keep=frozenset({"a"}))
    kinds = {node.op_type: node.outputs[0].dtype for node in model.graph if node.op_type == "Relu"}
    assert kinds == {"Relu": DataType.BFLOAT16}
    [kept] = [node for node in model.graph if node.outputs[0].name == "a"]
    assert [value.dtype for value in (*kept.inputs, *kept.outputs)] == [DataType.FLOAT] * 3
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
