"""fp32 graph -> typed fp16 or bf16 graph. The precision is then a property of the graph, never a builder flag."""

from __future__ import annotations

from typing import Final, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from export.onnx_graphs import module_of
from runtime.errors import ExportError

Half = Literal["fp16", "bf16"]

# Nodes that stay in fp32 in every half-precision graph, and why: there fp16 overflows or loses its ten bits.
FP32_ISLANDS: Final = {
    "LayerNormalization": "mean and variance over the channels",
    "InstanceNormalization": "statistics of a group norm over whole maps",
    "ReduceL2": "length of a vector, for a cosine",
    "ReduceMean": "mean over many elements",
    "ReduceSum": "sum over many elements: linear attention, AnyUp's feature unification",
    "Clip": "guard of the division that follows",
    "Div": "division by one of the sums above",
    "Sqrt": "root mean square",
    "Reciprocal": "one over a root mean square",
}
BF16_ISLANDS: Final = {"ConvTranspose": "TensorRT has no transposed convolution in bf16 (seen in TensorRT-RTX 1.7)"}
FP32_MODULES: Final = {
    "key_features_encoder": "AnyUp's feature unification: nearly constant maps, whose group norm enlarges rounding",
}
DTYPES: Final = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
ARRAYS: Final[dict[str, npt.DTypeLike]] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
BF16_OPSET = 22  # the first in which convolutions and norms may be bf16; nothing else changed for our nodes
HALF_MAX = float(np.finfo(np.float16).max)


def is_island(node: ir.Node, to: Half, keep: frozenset[str]) -> bool:
    """Whether a node computes in fp32: by its kind, its module, or because `keep` holds its first output's name."""
    inside = FP32_MODULES.keys() & module_of(node).split(".")
    kind = node.op_type in FP32_ISLANDS or (to == "bf16" and node.op_type in BF16_ISLANDS)
    return kind or bool(inside) or node.outputs[0].name in keep


def retype(model: ir.Model, stage: str, to: Half, keep: frozenset[str] = frozenset()) -> None:
    """Retypes the graph in place. Inputs and outputs stay float32; islands are bounded by casts.

    Args:
        keep: First outputs of further nodes that stay in fp32.

    Raises:
        ExportError: a weight or constant lies outside fp16's range.
    """
    _Converter(model, stage, to, keep).convert()
    if to == "bf16":
        model.opset_imports[""] = max(model.opset_imports[""], BF16_OPSET)


class _Converter:
    def __init__(self, model: ir.Model, stage: str, to: Half, keep: frozenset[str]) -> None:
        self.graph, self.stage, self.to, self.keep = model.graph, stage, to, keep
        self.dtype = DTYPES[to]
        self.full: dict[ir.Value, ir.Value] = {}  # half value -> the fp32 value that it was cast from
        self.half: dict[ir.Value, ir.Value] = {}  # fp32 initializer or input -> its half twin

    def convert(self) -> None:
        nodes = list(self.graph)
        outputs = list(self.graph.outputs)
        for node in nodes:
            if is_island(node, self.to, self.keep):
                self._island(node)
            else:
                self._retype(node)
        for i, output in enumerate(outputs):
            if output.dtype == self.dtype:
                self._restore_output(i, output)
        unused = [name for name, value in self.graph.initializers.items() if not value.uses()]
        for name in unused:
            del self.graph.initializers[name]

    def _retype(self, node: ir.Node) -> None:
        """A half node: its float inputs become half, and so do its outputs."""
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype == ir.DataType.FLOAT:
                node.replace_input_with(i, self._halved(value, node))
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                if tensor.dtype == ir.DataType.FLOAT:
                    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, self._half_tensor(tensor))
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", self.dtype)
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = self.dtype

    def _island(self, node: ir.Node) -> None:
        """An fp32 node: half inputs are cast up, outputs down. Neighbouring islands stay connected in fp32."""
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype == self.dtype:
                if value not in self.full:
                    self.full[value] = self._cast(value, ir.DataType.FLOAT, before=node)
                node.replace_input_with(i, self.full[value])
        for output in list(node.outputs):
            if output.dtype != ir.DataType.FLOAT or output.is_graph_output():
                continue
            uses = list(output.uses())
            lowered = self._cast(output, self.dtype, after=node)
            for user, index in uses:
                user.replace_input_with(index, lowered)
            self.full[lowered] = output

    def _halved(self, value: ir.Value, user: ir.Node) -> ir.Value:
        if value not in self.half:
            if value.const_value is not None and value.is_initializer():
                tensor = self._half_tensor(value.const_value)
                twin = ir.Value(
                    name=f"{value.name}_{self.to}",
                    const_value=tensor,
                    type=ir.TensorType(self.dtype),
                    shape=value.shape,
                )
                tensor.name = twin.name
                self.graph.register_initializer(twin)
            else:
                twin = self._cast(value, self.dtype, before=user)
                self.full[twin] = value
            self.half[value] = twin
        return self.half[value]

    def _half_tensor(self, tensor: ir.TensorProtocol) -> ir.Tensor:
        array = tensor.numpy()
        largest = float(np.abs(array).max(initial=0.0))
        if self.to == "fp16" and largest > HALF_MAX:
            raise ExportError(
                f"stage {self.stage}: {tensor.name} holds {largest:.3g}, over fp16's {HALF_MAX:.0f}; "
                "build it with --engine fp32"
            )
        return ir.Tensor(array.astype(ARRAYS[self.to]), name=tensor.name)

    def _cast(
        self, value: ir.Value, to: ir.DataType, before: ir.Node | None = None, after: ir.Node | None = None
    ) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(to)})
        output = node.outputs[0]
        output.name = f"{value.name}_{'full' if to == ir.DataType.FLOAT else 'half'}"
        output.dtype = to
        if before is not None:
            self.graph.insert_before(before, node)
        elif after is not None:
            self.graph.insert_after(after, node)
        return output

    def _restore_output(self, index: int, output: ir.Value) -> None:
        """The graph's own output keeps its name and float32."""
        name, shape = output.name, output.shape
        producer = output.producer()
        assert producer is not None
        output.name = f"{name}_half"
        restored = self._cast(output, ir.DataType.FLOAT, after=producer)
        restored.name, restored.shape = name, shape
        self.graph.outputs[index] = restored


def dtype_counts(model: ir.Model) -> dict[str, int]:
    """How many values of each floating type the graph computes: read back, not assumed."""
    floating = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.dtype in floating:
                name = floating[value.dtype]
                counts[name] = counts.get(name, 0) + 1
    return counts
