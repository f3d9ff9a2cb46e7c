"""Engine libraries behind one protocol."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal, get_args

from runtime.bundle import Bundle
from runtime.engines.base import Engine
from runtime.errors import EngineError, InputError
from runtime.manifest import Precision

Backend = Literal["onnxruntime", "openvino"]


def choose_backend(backend: str, precision: str | None) -> tuple[Backend, Precision]:
    """Resolves "auto" and the default precision.

    ONNX Runtime is the portable default; bf16 on a CPU is OpenVINO's. OpenVINO's own default is bf16, its
    fastest mode.

    Raises:
        InputError: unknown names, or a precision that the backend cannot run.
        EngineError: the library is not installed.
    """
    if precision not in (None, *get_args(Precision)):
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(get_args(Precision))}")
    if backend == "auto":
        backend = "openvino" if precision == "bf16" else "onnxruntime"
    if backend not in get_args(Backend):
        raise InputError(f"backend is {backend!r}; expected auto or one of {', '.join(get_args(Backend))}")
    if backend == "onnxruntime" and precision == "bf16":
        raise InputError("ONNX Runtime has no bf16 arithmetic on a CPU; use backend openvino for bf16")
    if importlib.util.find_spec(backend) is None:
        raise EngineError(f"{backend} is not installed; pip install {backend}")
    if backend == "openvino":
        return "openvino", _precision(precision or "bf16")
    return "onnxruntime", _precision(precision or "fp32")


def _precision(name: str) -> Precision:
    return next(known for known in get_args(Precision) if known == name)


def graph_precision(precision: Precision) -> Precision:
    """The ONNX graphs that a precision runs: OpenVINO's bf16 is a mode of the fp32 graph."""
    return "fp32" if precision == "bf16" else precision


def open_stage(bundle: Bundle, stage: str, backend: Backend, precision: Precision, threads: int | None) -> Engine:
    """The engine of a bundle's stage, in the precision that the build found to hold.

    No CPU engine computes typed bf16 graphs: where fp16 became bf16, the fp32 graph is run.

    Raises:
        BundleError: the bundle has no such graph, or it was altered.
        EngineError: the library cannot load the graph.
    """
    if precision == "bf16":
        return open_engine(backend, bundle.onnx(stage, "fp32"), precision, threads)
    graph, typed = bundle.onnx(stage, precision), bundle.stage(stage).typed(precision)
    if typed == "bf16":
        graph, typed = bundle.onnx(stage, "fp32"), "fp32"
    return open_engine(backend, graph, typed, threads)


def open_engine(backend: Backend, graph: Path, precision: Precision, threads: int | None) -> Engine:
    """Loads one ONNX graph.

    Raises:
        EngineError: the library cannot load the graph.
    """
    if backend == "openvino":
        from runtime.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(graph, precision, threads)
    from runtime.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, precision, threads)
