"""The first tensor of a graph that goes wrong in an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from export.ranges import open_plain
from runtime.engines.base import Engine, Tensors, contiguous
from runtime.parity import errors

GROUP = 48  # tensors held at once: about 1.5 GB of ViT-L's at most
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class FirstWrong:
    """`node`: kind and path of the node that computes it; `error`: relative RMS."""

    tensor: str
    node: str
    error: float

    def __str__(self) -> str:
        return f"the first tensor beyond that is the output {self.tensor} of {self.node} ({self.error:.1e})"


def first_wrong(
    open_graph: Callable[[Path], Engine], graph: Path, reference: Path, inputs: Tensors, limit: float
) -> FirstWrong | None:
    """Compares the values of both graphs in the order of the data, a group at a time.

    Args:
        open_graph: Opens an altered copy of `graph` in the engine in question.
        reference: The fp32 graph; the typed graphs name their values alike.
        limit: Most relative RMS error.

    Returns:
        None where no inner value is over the limit.
    """
    nodes = {name: node for node in load(reference).graph.node for name in node.output if node.op_type != "Constant"}
    kinds = float_values(load(graph))
    names = [name for name in float_values(load(reference)) if name in nodes and name in kinds]
    for start in range(0, len(names), GROUP):
        group = names[start : start + GROUP]
        with with_outputs(reference, group) as path:
            expected = dict(zip(group, open_plain(path).run(group, contiguous(inputs)), strict=True))
        with with_outputs(graph, group) as path:
            found = open_graph(path)(inputs)
        for name in group:
            error = errors(found[output_of(name, kinds[name])], expected[name])[1]
            if not error <= limit:
                return FirstWrong(name, f"{nodes[name].op_type} {nodes[name].name}".strip(), error)
    return None


def load(graph: Path) -> onnx.ModelProto:
    return onnx.load(graph, load_external_data=False)


def float_values(model: onnx.ModelProto) -> dict[str, int]:
    """Type of every float value that a node computes, in the order of the nodes."""
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    computed = (name for node in model.graph.node for name in node.output)
    return {name: types[name] for name in computed if types.get(name) in FLOATS}


def output_of(name: str, kind: int) -> str:
    """The output of an altered graph for one of its values: NumPy has no bf16, so half values are cast."""
    return name if kind == TensorProto.FLOAT else f"{name}_seen"


@contextmanager
def with_outputs(graph: Path, names: list[str]) -> Iterator[Path]:
    """A copy of the graph, beside its weights, that gives these values in fp32 and nothing else."""
    model = load(graph)
    kinds = float_values(model)
    del model.graph.output[:]
    for name in names:
        output = output_of(name, kinds[name])
        if output != name:
            model.graph.node.append(helper.make_node("Cast", [name], [output], to=TensorProto.FLOAT))
        model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    path = graph.with_name(f".{graph.stem}.inner.onnx")
    try:
        onnx.save(model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)
