"""OpenVINO on the CPU: the fast engine, from the same ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino
import openvino.properties.hint as hints

from runtime.engines.base import Array, Tensors, contiguous
from runtime.errors import EngineError

_HINTS = {"fp32": openvino.Type.f32, "fp16": openvino.Type.f16, "bf16": openvino.Type.bf16}


class OpenVinoEngine:
    """Precision is a hint there: what the CPU really does is read back from the compiled model."""

    def __init__(self, graph: Path, precision: str, threads: int | None) -> None:
        config: dict[Any, Any] = {
            hints.inference_precision: _HINTS[precision],
            hints.performance_mode: hints.PerformanceMode.LATENCY,
        }
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            self._model = core.compile_model(core.read_model(graph), "CPU", config)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EngineError(f"OpenVINO {openvino.__version__} cannot load {graph}: {reason}") from None
        self._request = self._model.create_infer_request()
        self._asked = precision

    @property
    def precision(self) -> str:
        found = self._model.get_property(hints.inference_precision)
        name = next((name for name, kind in _HINTS.items() if kind == found), str(found))
        return name if name == self._asked else f"{name} (this CPU has no {self._asked} arithmetic)"

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        results = self._request.infer(contiguous(inputs), share_inputs=True)
        # A port may carry inner names beside the graph's.
        return {name: value for port, value in results.items() for name in port.get_names()}
