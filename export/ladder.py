"""Which precision a stage really gets: fp16, fp16 with further fp32 regions, bf16, or fp32; the first that holds.

A rung holds if every value that it keeps in fp16 stays well inside fp16's range on the calibration images, eager
torch in half precision stays finite, and the stage's outputs, with every value rounded as on a GPU, are within the
limit of the precision. Random weights prove nothing here: the ladder runs on the weights that are deployed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export import onnx_graphs
from export.graph_flops import flop_shares
from export.onnx_graphs import Graph, module_of
from export.precision import HALF_MAX, Half, is_island, retype
from export.ranges import open_plain
from export.rounding import round_values
from runtime.engines.base import Tensors, contiguous
from runtime.errors import ExportError
from runtime.manifest import Precision, StageParity, StagePrecision
from runtime.parity import LIMITS, compare

HEADROOM = 2.0  # other images may reach further than those of the calibration
LEAST_SHARE = 0.5  # of the FLOPs that must be in the precision that a graph is named after
ALWAYS_FP32 = {"text_encoder": "embeddings are made once and cached: exactness is free"}
# Witnesses of half precision on a CPU, as they are named among the engines of parity rows.
EMULATED = "every value rounded"
EAGER = "eager torch"


@dataclass(frozen=True)
class Call:
    """A stage's inputs, and torch float32's outputs on them."""

    inputs: Tensors
    expected: Tensors


@dataclass(frozen=True)
class Evidence:
    """What is known of a stage before it is retyped.

    Attributes:
        graph: Its fp32 graph.
        largest: max |x| of every value over the calibration images.
        half_is_finite: Whether eager torch in fp16 gave finite outputs; None where it could not run.
    """

    stage: str
    graph: Path
    calls: Sequence[Call]
    largest: Mapping[str, float]
    half_is_finite: bool | None


@dataclass(frozen=True)
class Settled:
    """The graph that the asked-for precision resolves to, and how far it is from torch with every value rounded."""

    precision: StagePrecision
    graph: Graph | None  # None: the fp32 graph
    parities: tuple[StageParity, ...]


def settle(evidence: Evidence, asked: Half, folder: Path) -> Settled:
    """Climbs from `asked` to the first rung that holds and writes its graph as `<stage>.<precision>.onnx`.

    Raises:
        ExportError: a graph that computes mostly in another precision than its name says.
    """
    if evidence.stage in ALWAYS_FP32:
        return in_fp32(asked, ALWAYS_FP32[evidence.stage])
    reasons: list[str] = []
    for to, keep, doubt in rungs(evidence, asked):
        if doubt:
            reasons.append(doubt)
        if keep is None:
            continue
        rows = rounded_errors(evidence, to, keep)
        worst = max(row.relative_rms_error for row in rows)
        limit = LIMITS[to].relative_rms
        if worst > limit:
            reasons.append(f"{to} is {worst:.1e} relative RMS from fp32, over {limit:.0e}")
            continue
        path = folder / f"{evidence.stage}.{to}.onnx"
        graph, precision = write(evidence, asked, to, keep, "; ".join(reasons), path)
        return Settled(precision, graph, tuple(rows))
    return in_fp32(asked, "; ".join(reasons))


def in_fp32(asked: Half, reason: str) -> Settled:
    return Settled(StagePrecision(asked=asked, got="fp32", reason=reason, flops={"fp32": 1.0}), None, ())


def rungs(evidence: Evidence, asked: Half) -> Iterable[tuple[Half, frozenset[str] | None, str]]:
    """(precision, values kept in fp32 or None for a rung that is out, why the rung before was left)."""
    if asked == "fp16":
        model = onnx_graphs.load(evidence.graph)
        largest = {**evidence.largest, **weights(model)}
        far = too_large(model, largest, frozenset())
        if far:
            keep = region(model, largest)
            name, reach = far[0]
            what = f"{described(model, name)} reaches {reach:.3g}, over {HALF_MAX / HEADROOM:.0f}"
            yield "fp16", keep if mostly_half(model, keep) else None, what
        elif evidence.half_is_finite is False:
            yield "fp16", None, "torch in half precision is not finite"
        else:
            yield "fp16", frozenset(), ""
    yield "bf16", frozenset(), ""


def weights(model: ir.Model) -> dict[str, float]:
    """max |x| of the float weights."""
    return {
        str(name): float(np.abs(value.const_value.numpy()).max(initial=0.0))
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT
    }


def too_large(model: ir.Model, largest: Mapping[str, float], keep: frozenset[str]) -> list[tuple[str, float]]:
    """Values that the typed graph would hold in fp16 beyond its range less the headroom, in order of the data."""
    found: dict[str, float] = {}
    for node in model.graph:
        if is_island(node, "fp16", keep):
            continue
        for value in (*node.inputs, *node.outputs):
            reach = largest.get(str(value.name), 0.0) if value is not None else 0.0
            if not reach <= HALF_MAX / HEADROOM:
                assert value is not None
                found[str(value.name)] = reach
    return list(found.items())


def region(model: ir.Model, largest: Mapping[str, float]) -> frozenset[str]:
    """First outputs of the nodes that make or read a value beyond the range."""
    return frozenset(
        str(node.outputs[0].name)
        for node in model.graph
        for value in (*node.inputs, *node.outputs)
        if value is not None and not largest.get(str(value.name), 0.0) <= HALF_MAX / HEADROOM
    )


def mostly_half(model: ir.Model, keep: frozenset[str]) -> bool:
    """By count of products: the shares of the FLOPs are checked on the written graph."""
    products = [node for node in model.graph if node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")]
    kept = sum(is_island(node, "fp16", keep) for node in products)
    return kept <= (1 - LEAST_SHARE) * len(products)


def described(model: ir.Model, name: str) -> str:
    """By the node that makes a value, or reads a weight: names of values say nothing to a reader."""
    for node in model.graph:
        if any(value is not None and value.name == name for value in (*node.outputs, *node.inputs)):
            what = node.op_type if any(output.name == name for output in node.outputs) else f"input of {node.op_type}"
            return f"{what} in {module_of(node)}" if module_of(node) else f"{what} {name}"
    return name


def rounded_errors(evidence: Evidence, to: Half, keep: frozenset[str]) -> list[StageParity]:
    model = onnx_graphs.load(evidence.graph)
    round_values(model, to, keep)
    path = evidence.graph.with_name(f".{evidence.graph.name}.rounded")
    try:
        onnx_graphs.save(model, path)
        session = open_plain(path)
        names = [output.name for output in session.get_outputs()]
        rows = []
        for call in evidence.calls:
            found = dict(zip(names, session.run(names, contiguous(call.inputs)), strict=True))
            rows.append(compare(evidence.stage, to, EMULATED, found, call.expected))
        return rows
    finally:
        for file in (path, path.with_name(f"{path.name}.data")):
            file.unlink(missing_ok=True)


def write(
    evidence: Evidence, asked: Half, to: Half, keep: frozenset[str], reason: str, path: Path
) -> tuple[Graph, StagePrecision]:
    model = onnx_graphs.load(evidence.graph)
    islands = Counter(node.op_type for node in model.graph if is_island(node, to, keep))
    regions = sorted({module_of(node) or node.op_type for node in model.graph if node.outputs[0].name in keep})
    retype(model, evidence.stage, to, keep)
    graph = onnx_graphs.save(model, path)
    shares = flop_shares(path, evidence.calls[0].inputs)
    check_shares(evidence.stage, to, shares)
    precision = StagePrecision(
        asked=asked, got=to, reason=reason, regions=tuple(regions), islands=dict(sorted(islands.items())), flops=shares
    )
    return graph, precision


def check_shares(stage: str, precision: Precision, shares: Mapping[str, float]) -> None:
    """Raises ExportError where a graph computes mostly in another type than its name says."""
    if shares.get(precision, 0.0) < LEAST_SHARE:
        found = ", ".join(f"{share:.0%} {name}" for name, share in shares.items()) or "no product at all"
        raise ExportError(
            f"stage {stage}: the {precision} graph computes {found}; expected {precision} for most of its FLOPs: "
            "report this graph, or build with --engine fp32"
        )


def check_strict(settled: Iterable[tuple[str, StagePrecision]]) -> None:
    """Raises ExportError for the first stage that did not simply get what was asked for."""
    for stage, precision in settled:
        if stage not in ALWAYS_FP32 and (precision.got != precision.asked or precision.regions):
            how = f"fp32 in {', '.join(precision.regions)}" if precision.regions else precision.got
            raise ExportError(
                f"stage {stage}: {precision.asked} does not hold ({precision.reason}) and would become {how}; "
                "leave out --strict to accept that"
            )
