"""ONNX Runtime: on the CPU the portable reference, on CUDA a GPU engine that needs no build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from runtime.engines.base import Array, Tensors, contiguous
from runtime.errors import EngineError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
NO_TF32 = {"use_tf32": "0"}  # fp32 means fp32


def session_options(threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Every stage has its own threads. Spinning after their work they would hold the cores that the next stage
    # needs: a frame took 1.5 times as long on two cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def open_session(graph: Path, options: Any, provider: str, provider_options: Mapping[str, str]) -> Any:
    """A session that runs on the provider and says so where it cannot.

    Raises:
        EngineError: the provider is missing or does not start, or the graph cannot be loaded.
    """
    if provider not in onnxruntime.get_available_providers():
        raise EngineError(
            f"ONNX Runtime {onnxruntime.__version__} has no {provider} (it has "
            f"{', '.join(onnxruntime.get_available_providers())}); pip uninstall onnxruntime, then pip install "
            "onnxruntime-gpu: the two packages overwrite each other"
        )
    providers = [(provider, dict(provider_options))]
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=providers, enable_fallback=False)
    except Exception as error:  # the library raises its own classes, none of them public
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load {graph}: {one_line(error)}") from None
    if provider not in session.get_providers():  # it falls back to the CPU without a word
        raise EngineError(
            f"ONNX Runtime {onnxruntime.__version__} could not start {provider} and fell back to the CPU; "
            "its CUDA and cuDNN do not fit those installed: run python -m runtime doctor"
        )
    return session


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class OnnxRuntimeEngine:
    def __init__(self, graph: Path, precision: str, threads: int | None, provider: str = CPU) -> None:
        self._session = open_session(graph, session_options(threads), provider, NO_TF32 if provider == CUDA else {})
        self._provider = provider
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._graph_precision = precision

    @property
    def precision(self) -> str:
        if self._graph_precision == "fp16" and self._provider == CPU:
            return "fp16 storage, fp32 arithmetic (this CPU provider casts around its kernels)"
        return self._graph_precision

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(self._outputs, contiguous(inputs)), strict=True))
