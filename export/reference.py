"""The torch reference behind the pipeline: every stage is exported when it is first called.

The pipeline hands every stage real inputs in the order of the data: they serve as export examples and as parity
inputs, and only one stage's weights are in memory at a time.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export import onnx_graphs
from export.ladder import EAGER, Call
from export.onnx_graphs import Graph
from export.precision import FP32_MODULES
from export.stages import Stage, Weights
from export.torch_engine import TorchEngine
from runtime.engines.base import Array, Tensors
from runtime.manifest import Precision, StageParity, StagePrecision
from runtime.parity import compare


@dataclass
class BuiltStage:
    """A stage's graphs by precision, the seconds each took, its calls, and the engines' errors against torch.

    `precisions` says, for each precision asked for beside fp32, which graph stands for it. `eager_half` is torch in
    float16 against torch in float32; empty where the graphs keep a whole module in fp32, which torch does not.
    """

    stage: Stage
    graphs: dict[Precision, Graph] = field(default_factory=dict)
    seconds: dict[Precision, float] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    half_is_finite: bool | None = None
    eager_half: list[StageParity] = field(default_factory=list)
    precisions: list[StagePrecision] = field(default_factory=list)
    parities: list[StageParity] = field(default_factory=list)

    def graph(self, asked: Precision) -> tuple[Path, Precision]:
        """What a CPU engine runs: none of them computes typed bf16 graphs, so fp32 stands in."""
        settled: dict[Precision, Precision] = {entry.asked: entry.got for entry in self.precisions}
        got = settled.get(asked, "fp32")
        runnable: Precision = "fp32" if got == "bf16" else got
        return self.graphs[runnable].path, runnable


class Reference:
    """Runs stages in torch float32, exports them to `folder` and remembers what went in and out.

    Args:
        try_half: Also run every stage in torch float16, which overflows as a GPU would.
    """

    def __init__(self, weights: Weights, folder: Path, try_half: bool, announce: Callable[[str], None]) -> None:
        self._weights, self._folder, self._try_half, self._announce = weights, folder, try_half, announce
        self._live: tuple[Stage, nn.Module] | None = None
        self.built: dict[str, BuiltStage] = {}

    def run(self, stage: Stage, inputs: Tensors) -> dict[str, Array]:
        if self._live is None or self._live[0] is not stage:
            self.free()
            self._live = stage, self._export(stage, inputs)
        names = [spec.name for spec in stage.outputs]
        module, built = self._live[1], self.built[stage.name]
        expected = TorchEngine(module, names)(inputs)
        built.calls.append(Call({name: value.copy() for name, value in inputs.items()}, expected))
        if self._try_half and built.half_is_finite is not False:
            self._announce(f"{stage.name}: torch in half precision")
            found = run_in_half(module, names, inputs)
            if found is not None:
                row = compare(stage.name, "fp16", EAGER, found, expected)
                built.half_is_finite = math.isfinite(row.relative_rms_error)
                modules = {path.rpartition(".")[2] for path, _ in module.named_modules()}
                built.eager_half += [] if FP32_MODULES.keys() & modules else [row]
        return expected

    def free(self) -> None:
        self._live = None
        gc.collect()

    def _export(self, stage: Stage, inputs: Tensors) -> nn.Module:
        self._announce(f"{stage.name}: weights")
        module = stage.build(self._weights)
        self._announce(f"{stage.name}: fp32 graph")
        start = time.perf_counter()
        path = self._folder / f"{stage.name}.fp32.onnx"
        graph = onnx_graphs.export_graph(stage, module, example(stage, inputs), path)
        seconds: dict[Precision, float] = {"fp32": time.perf_counter() - start}
        self.built[stage.name] = BuiltStage(stage, {"fp32": graph}, seconds)
        return module


class ExportOnCall:
    """Engine protocol around the reference."""

    precision = "fp32"

    def __init__(self, reference: Reference, stage: Stage) -> None:
        self._reference, self._stage = reference, stage

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        return self._reference.run(self._stage, inputs)


def run_in_half(module: nn.Module, outputs: list[str], inputs: Tensors) -> dict[str, Array] | None:
    """float32 copies of what a copy of the module in float16 gives; None where torch lacks a kernel for it."""
    half = deepcopy(module).half()
    try:
        with torch.inference_mode():
            results = half(**{name: as_half(value) for name, value in inputs.items()})
    except RuntimeError as error:
        if "not implemented for 'Half'" in str(error):
            return None
        raise
    values = (results,) if isinstance(results, Tensor) else results
    return {name: value.float().numpy() for name, value in zip(outputs, values, strict=True)}


def as_half(value: Array) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    return tensor.half() if tensor.is_floating_point() else tensor


def example(stage: Stage, inputs: Tensors) -> dict[str, Tensor]:
    """Export inputs: the real ones, with dynamic axes of length 1 doubled, which the exporter would fix."""
    tensors = {}
    for spec in stage.inputs:
        value = torch.from_numpy(np.ascontiguousarray(inputs[spec.name]))
        for i, axis in enumerate(spec.shape):
            if isinstance(axis, str) and value.shape[i] == 1:
                value = torch.cat([value, value], dim=i)
        tensors[spec.name] = value
    return tensors
