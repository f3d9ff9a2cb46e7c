"""How large every value of a graph becomes on real images: fp16 ends at 65504."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from runtime.engines.base import Array, Tensors, contiguous

PREFIX = "largest of "


class RangeEngine:
    """Engine protocol around an fp32 graph; `largest` holds max |x| of every value it was given or has computed so far.

    The maxima are taken inside the graph, so that no intermediate outlives its use. The session is closed after
    every call: one stage at a time is in memory.
    """

    precision = "fp32"

    def __init__(self, graph: Path) -> None:
        self._graph = graph
        self.largest: dict[str, float] = {}

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        altered = self._graph.with_name(f".{self._graph.name}.ranges")  # beside the data file that it names
        try:
            onnx.save(with_maxima(self._graph), altered)
            session = open_plain(altered)
        finally:
            altered.unlink(missing_ok=True)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, contiguous(inputs)), strict=True))
        for name, value in inputs.items():
            if value.dtype.kind == "f":
                self._note(name, np.abs(value).max(initial=0.0))
        for name in names:
            if name.startswith(PREFIX):
                self._note(name.removeprefix(PREFIX), found.pop(name))
        return found

    def _note(self, name: str, reach: npt.ArrayLike) -> None:
        """What is not a number stays so: Python's `max` would forget it."""
        self.largest[name] = float(np.maximum(self.largest.get(name, 0.0), reach))


def with_maxima(graph: Path) -> onnx.ModelProto:
    """The graph with one more scalar output for every float value that a node computes.

    Each maximum stands right behind its value, and `open_plain` keeps that order: at the end they would keep every
    value of the graph in memory, 24 GB of ViT-L's.
    """
    model = onnx.load(graph, load_external_data=False)
    values = (*model.graph.value_info, *model.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        for name in floats.intersection(node.output):
            nodes.append(helper.make_node("Abs", [name], [f"absolute {name}"]))
            nodes.append(helper.make_node("ReduceMax", [f"absolute {name}"], [PREFIX + name], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(PREFIX + name, TensorProto.FLOAT, []))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def open_plain(graph: Path) -> onnxruntime.InferenceSession:
    """Nothing is optimised or reordered: a fused node would compute other values than those asked for."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED  # that of the file
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
