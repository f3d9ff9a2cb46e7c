"""What half precision does to a graph, shown on any CPU.

CPU engines compute fp16 graphs in fp32 and hide overflow; none runs typed bf16 graphs. Here an fp32 graph is given
explicit casts to half and back wherever the typed graph holds a value in half: weights, inputs and every result are
rounded, and what is too large becomes infinite, as on a GPU that accumulates in fp32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.precision import ARRAYS, DTYPES, Half, is_island

# Values that are only moved are not rounded again.
MOVES = frozenset(
    ("Transpose", "Reshape", "Gather", "Slice", "Concat", "Split", "Squeeze", "Unsqueeze", "Expand", "Identity")
)


def round_values(model: ir.Model, to: Half, keep: frozenset[str] = frozenset()) -> None:
    """Inserts the casts in place. The same values are rounded as `precision.retype` gives the type `to`."""
    graph = model.graph
    nodes, outputs = list(graph), list(graph.outputs)
    half = {output for node in nodes if not is_island(node, to, keep) for output in node.outputs}
    rounded: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        if is_island(node, to, keep):
            continue
        for i, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT or value in half or value in rounded.values():
                continue
            if value not in rounded:
                rounded[value] = _rounded_weight(graph, value, to) or _round_trip(graph, value, to, before=node)
            node.replace_input_with(i, rounded[value])
        if node.op_type not in MOVES:
            for output in [one for one in node.outputs if one.dtype == ir.DataType.FLOAT]:
                _round_result(graph, node, output, to, outputs)


def _rounded_weight(graph: ir.Graph, value: ir.Value, to: Half) -> ir.Value | None:
    if value.const_value is None or not value.is_initializer():
        return None
    with np.errstate(over="ignore"):
        array = value.const_value.numpy().astype(ARRAYS[to]).astype(np.float32)
    name = f"{value.name}_rounded"
    twin = ir.Value(name=name, const_value=ir.Tensor(array, name=name), type=value.type, shape=value.shape)
    graph.register_initializer(twin)
    return twin


def _round_trip(
    graph: ir.Graph, value: ir.Value, to: Half, before: ir.Node | None = None, after: ir.Node | None = None
) -> ir.Value:
    down = ir.node("Cast", [value], {"to": int(DTYPES[to])})
    up = ir.node("Cast", [down.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    down.outputs[0].name, down.outputs[0].dtype = f"{value.name}_down", DTYPES[to]
    up.outputs[0].name, up.outputs[0].dtype = f"{value.name}_up", ir.DataType.FLOAT
    if before is not None:
        graph.insert_before(before, [down, up])
    elif after is not None:
        graph.insert_after(after, [down, up])
    return up.outputs[0]


def _round_result(graph: ir.Graph, node: ir.Node, output: ir.Value, to: Half, outputs: list[ir.Value]) -> None:
    uses = list(output.uses())
    name = output.name
    result = _round_trip(graph, output, to, after=node)
    for user, index in uses:
        user.replace_input_with(index, result)
    if output in outputs:
        output.name = f"{name}_exact"
        result.name, result.shape = name, output.shape
        graph.outputs[outputs.index(output)] = result
