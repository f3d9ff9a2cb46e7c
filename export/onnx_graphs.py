"""Stage modules -> ONNX graphs with external weights, linted for what engines cannot run or run wrongly."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import Tensor, nn

from export.stages import Stage
from runtime.errors import ExportError
from runtime.manifest import TensorSpec

OPSET = 20  # JetPack 6 and 7.1 read up to 22; LayerNormalization and Gelu are single nodes since 17 and 20
FORBIDDEN = {
    "If": "control flow on data: TensorRT cannot capture it (lightly-train#783)",
    "Loop": "control flow on data",
    "Scan": "control flow on data",
    "NonZero": "the output's shape depends on the data",
    "GridSample": "not fused and slow in every engine",
    "Pow": "a LayerNorm that was taken apart (TensorRT#4723)",
}
MODULE = "module"  # key of a node's metadata
LARGE = 1 << 16  # elements
FOLD_LIMIT = 1 << 30  # joins weights that a module concatenates in forward; the result replaces its sources


@dataclass(frozen=True)
class Graph:
    """One written graph: `path` and, beside it, `<path>.data` if it has weights."""

    path: Path
    nodes: int
    parameters: int
    size: int


def export_graph(stage: Stage, module: nn.Module, example: dict[str, Tensor], path: Path) -> Graph:
    """Exports one stage with the dynamo exporter.

    Args:
        example: An input of every name; dynamic axes must be longer than 1, or the exporter fixes them.

    Raises:
        ExportError: the exporter fails, or the graph holds a forbidden node.
    """
    unspecialised = {
        spec.name: {i: torch.export.Dim.AUTO for i, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in stage.inputs
    }
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                module,
                kwargs={spec.name: example[spec.name] for spec in stage.inputs},
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=unspecialised,
                input_names=[spec.name for spec in stage.inputs],
                output_names=[spec.name for spec in stage.outputs],
                verbose=False,
                optimize=False,
            )
            assert program is not None
            model = program.model
            optimizer.optimize_ir(
                model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, should_fold=does_not_grow
            )
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(f"stage {stage.name}: torch.onnx.export failed: {reason}") from error
    name_axes(model, stage)
    lint(model, stage.name)
    return save(model, path)


def does_not_grow(node: ir.Node) -> bool | None:
    """A large folded Expand would store the same numbers many times: 96 MB of SAM's one-hot positions."""
    shape = node.outputs[0].shape
    large = shape is None or not shape.is_static() or math.prod(shape.numpy()) > LARGE
    return False if node.op_type == "Expand" and large else None


def name_axes(model: ir.Model, stage: Stage) -> None:
    """Gives inputs and outputs the shapes of the stage table, dynamic axes by name, and checks the rank."""
    for values, specs in ((model.graph.inputs, stage.inputs), (model.graph.outputs, stage.outputs)):
        for value, spec in zip(values, specs, strict=True):
            if value.name != spec.name or value.shape is None or len(value.shape) != len(spec.shape):
                raise ExportError(f"stage {stage.name}: exported {value.name} {value.shape}, expected {spec}")
            for i, axis in enumerate(spec.shape):
                exported = value.shape[i]
                if isinstance(axis, str) and isinstance(exported, int):
                    raise ExportError(f"stage {stage.name}: axis {axis} of {spec.name} was fixed to {exported}")
            value.shape = ir.Shape(spec.shape)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None  # the exporter's own symbols; engines infer shapes again


def lint(model: ir.Model, stage: str) -> None:
    """Raises ExportError naming every forbidden node and the module that it came from."""
    found = [node for node in model.graph.all_nodes() if node.op_type in FORBIDDEN]
    if found:
        origin = module_of(found[0]) or "unknown module"
        counts = ", ".join(f"{count}x {op}" for op, count in Counter(node.op_type for node in found).items())
        raise ExportError(
            f"stage {stage}: forbidden nodes {counts}; {found[0].op_type}: {FORBIDDEN[found[0].op_type]}; "
            f"first from {origin}"
        )


def module_of(node: ir.Node) -> str:
    """Path of the torch module that a node came from, e.g. "vit.blocks.3.mlp"; "" for the stage's own forward."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is None:
        return str(node.metadata_props.get(MODULE, ""))
    *modules, _ = ast.literal_eval(scopes)
    return str(modules[-1]) if modules else ""


def save(model: ir.Model, path: Path) -> Graph:
    """Writes graph and external weights; a graph without weights has no data file.

    Of the exporter's notes only the module of each node stays: the others hold paths of this machine. Engines keep
    nothing but a node's name, so the module is in that too.
    """
    for number, node in enumerate(model.graph.all_nodes()):
        module = module_of(node)
        node.name = "/".join(filter(None, (module.replace(".", "/"), f"{node.op_type}_{number}")))
        node.metadata_props.clear()
        if module:
            node.metadata_props[MODULE] = module
        node.doc_string = None
    model.graph.metadata_props.clear()
    for value in (
        *model.graph.initializers.values(),
        *(v for n in model.graph.all_nodes() for v in n.outputs),
    ):
        value.metadata_props.clear()
    data = path.with_name(f"{path.name}.data")
    ir.save(model, path, external_data=data.name, size_threshold_bytes=1024)
    if data.exists() and not data.stat().st_size:
        data.unlink()
    size = sum(file.stat().st_size for file in (path, data) if file.exists())
    parameters = sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value)
    return Graph(path, sum(1 for _ in model.graph.all_nodes()), parameters, size)


def load(path: Path) -> ir.Model:
    """Weights stay on disk until they are used."""
    return ir.load(path)


def specs_of(model: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Names, dtypes and shapes of inputs and outputs, read from the graph."""

    def spec(value: ir.Value) -> TensorSpec:
        assert value.name and value.dtype is not None and value.shape is not None
        shape = tuple(axis if isinstance(axis, int) else str(axis.value) for axis in value.shape)
        return TensorSpec(name=value.name, dtype=str(value.dtype.numpy()), shape=shape)

    return tuple(map(spec, model.graph.inputs)), tuple(map(spec, model.graph.outputs))


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silences what the exporter says about packages that we keep out (torchvision) and its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
