"""Where a graph spends its floating-point operations, and in which type: read back from the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from runtime.engines.base import Tensors

NAMES = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


def flop_shares(graph: Path, inputs: Tensors) -> dict[str, float]:
    """Share of the multiplications in each type, for inputs of these shapes. Types are inferred from the file."""
    totals = flop_counts(graph, {name: value.shape for name, value in inputs.items()})
    return {name: count / sum(totals.values()) for name, count in totals.items()}


def flop_counts(graph: Path, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Floating-point operations in each type, for inputs of these shapes.

    Only matrix products and convolutions count: in these networks they are over 99 % of the work.
    """
    model = onnx.load(graph, load_external_data=False)
    for value in model.graph.input:
        for axis, length in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=True):
            axis.dim_value = length
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in inferred.initializer}
    types: dict[str, int] = {t.name: t.data_type for t in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(axis.dim_value for axis in tensor.shape.dim)
    totals: dict[str, int] = {}
    for node in inferred.node:
        if operations := flops(node, shapes):
            name = NAMES.get(types[node.output[0]], "other")
            totals[name] = totals.get(name, 0) + operations
    return dict(sorted(totals.items()))


def flops(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Two for every multiplication; 0 for other kinds of nodes."""
    if node.op_type == "MatMul":
        return 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "Gemm":
        across = next((a.i for a in node.attribute if a.name == "transA"), 0)
        return 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if across else 1]
    if node.op_type == "Conv":
        return 2 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
    return 0
