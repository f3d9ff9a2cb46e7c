"""Engine libraries behind one protocol."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from runtime.bundle import Bundle
from runtime.engines.base import DeviceEngine, Engine
from runtime.errors import EngineError, InputError
from runtime.manifest import Precision

if TYPE_CHECKING:
    from runtime.engines.tensorrt import OpenEngine
    from runtime.pipeline import FramePipeline

Backend = Literal["onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx"]
MODULES: Final = {"onnxruntime-cuda": "onnxruntime", "tensorrt-rtx": "tensorrt_rtx"}
CPU_BACKENDS: Final = ("onnxruntime", "openvino")
BUILT: Final = ("tensorrt", "tensorrt-rtx")  # run engines that were built for one GPU


def choose_backend(backend: str, precision: str | None) -> tuple[Backend, Precision]:
    """Resolves "auto" on a CPU and the default precision.

    ONNX Runtime is the portable default; bf16 on a CPU is OpenVINO's. OpenVINO's own default is bf16, its
    fastest mode; that of the GPU backends is fp16 where it holds.

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
    if backend == "onnxruntime-cuda" and precision == "bf16":
        raise InputError("backend onnxruntime-cuda runs fp32 and fp16 graphs; use tensorrt or tensorrt-rtx for bf16")
    if backend == "onnxruntime" and precision == "bf16":
        raise InputError("ONNX Runtime has no bf16 arithmetic on a CPU; use backend openvino for bf16")
    if importlib.util.find_spec(MODULES.get(backend, backend)) is None:
        raise EngineError(not_installed(backend))
    default = {"openvino": "bf16", "onnxruntime": "fp32"}.get(backend, "fp16")
    return _backend(backend), _precision(precision or default)


def not_installed(backend: str) -> str:
    if backend in BUILT:
        from runtime.engines.tensorrt_library import missing

        return missing(_built(backend), ModuleNotFoundError())
    package = {"onnxruntime-cuda": "onnxruntime-gpu"}.get(backend, backend)
    return f"{backend} is not installed; pip install {package}"


def backend_for(bundle: Bundle, backend: str, precision: str | None) -> tuple[Backend, Precision]:
    """As `choose_backend`, but "auto" knows what was built for this machine's GPU."""
    return best_backend(bundle, precision) if backend == "auto" else choose_backend(backend, precision)


def best_backend(bundle: Bundle, precision: str | None) -> tuple[Backend, Precision]:
    """What "auto" means for a bundle: an engine that was built for the GPU of this machine, else the CPU."""
    from runtime.engine_cache import mend_engine, objection
    from runtime.gpu import find_gpu

    gpu = find_gpu() if bundle.manifest.engines else None
    if gpu is not None:
        for backend in BUILT:
            entries = [entry for entry in bundle.manifest.engines if entry.key.backend == backend]
            if entries and importlib.util.find_spec(MODULES.get(backend, backend)) is not None:
                from runtime.engines.tensorrt_library import load_library

                library = load_library(_built(backend))
                reasons = [(entry, objection(entry, library, entry.key.graph, gpu)) for entry in entries]
                fitting = {entry.key.stage for entry, reason in reasons if not reason}
                if fitting.issuperset(stage.name for stage in bundle.manifest.stages):
                    return choose_backend(backend, precision)
                entry, reason = next((one for one in reasons if one[1]), (entries[0], "has none beside it for others"))
                warnings.warn(
                    f"runs on the CPU: the {backend} engine of stage {entry.key.stage} {reason}; "
                    f"{mend_engine(bundle, entry, gpu)}",
                    stacklevel=2,
                )
    return choose_backend("auto", precision)


def _backend(name: str) -> Backend:
    return next(known for known in get_args(Backend) if known == name)


def _built(name: str) -> Literal["tensorrt", "tensorrt-rtx"]:
    return "tensorrt" if name == "tensorrt" else "tensorrt-rtx"


def _precision(name: str) -> Precision:
    return next(known for known in get_args(Precision) if known == name)


def graph_precision(precision: Precision) -> Precision:
    """The ONNX graphs that a precision runs: OpenVINO's bf16 is a mode of the fp32 graph."""
    return "fp32" if precision == "bf16" else precision


def open_stage(bundle: Bundle, stage: str, backend: Backend, precision: Precision, threads: int | None) -> Engine:
    """The engine of a bundle's stage, in the precision that the build found to hold.

    ONNX Runtime and OpenVINO do not compute typed bf16 graphs: where fp16 became bf16, they run the fp32 graph.

    Raises:
        BundleError: the bundle has no such graph, or it was altered.
        EngineError: the library cannot load the graph, or no engine was built for this GPU.
    """
    if backend in BUILT:
        from runtime.engines.on_host import HostEngine

        return HostEngine(open_built(bundle, stage, _built(backend), precision))
    if precision == "bf16":
        return open_engine(backend, bundle.onnx(stage, "fp32"), precision, threads)
    return open_engine(backend, *_typed_graph(bundle, stage, precision), threads)


def _typed_graph(bundle: Bundle, stage: str, precision: Precision) -> tuple[Path, Precision]:
    """Verified, with what it computes in."""
    if bundle.stage(stage).typed(precision) == "bf16":
        precision = "fp32"
    return bundle.onnx(stage, precision), bundle.stage(stage).typed(precision)


def open_on_device(
    bundle: Bundle, stage: str, backend: Backend, precision: Precision, max_memory: int | None
) -> DeviceEngine:
    """A stage between buffers of the GPU.

    Args:
        max_memory: Bytes that the activations of an ONNX Runtime session may take; None: what they need.

    Raises:
        BundleError: the bundle has no such graph, or it was altered.
        EngineError: no library, no GPU, or no engine that was built for it.
    """
    if backend in BUILT:
        return open_built(bundle, stage, _built(backend), precision)
    from runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine

    return OnnxRuntimeCudaEngine(bundle.stage(stage), *_typed_graph(bundle, stage, precision), max_memory)


def open_built(
    bundle: Bundle, stage: str, backend: Literal["tensorrt", "tensorrt-rtx"], precision: Precision
) -> OpenEngine:
    """The weights of a stage on the GPU.

    Raises:
        EngineError: no library, no GPU, or no engine that was built for it.
    """
    from runtime.engine_cache import find_engine
    from runtime.engines.tensorrt import OpenEngine
    from runtime.engines.tensorrt_library import load_library
    from runtime.gpu import cuda_core, find_gpu

    library = load_library(backend)
    gpu = find_gpu()
    if gpu is None:
        cuda_core()  # says so where it is what is missing
        raise EngineError(f"backend {backend} needs an NVIDIA GPU, none was found; python -m runtime doctor says why")
    return OpenEngine(library, bundle.root, find_engine(bundle, stage, library, precision, gpu))


def open_pipeline(
    bundle: Bundle,
    stages: Sequence[str],
    backend: Backend,
    precision: Precision,
    threads: int | None,
    max_memory: int | None,
    shortlist: int = 0,
    workers: int = 1,
) -> FramePipeline:
    """The order of the stages on the device of the backend: on a GPU with our kernels between its engines, one graph a
    frame where they can be captured; elsewhere host arrays between engines.

    Raises:
        InputError: a shortlist that cannot be, or several workers where frames do not run on a GPU.
        BundleError, EngineError: as `open_stage` and `open_built`.
    """
    from kernels import cuda_api
    from runtime.classes import check_shortlist
    from runtime.pipeline import Pipeline

    check_shortlist(shortlist, bundle.manifest.pipeline)
    if backend not in CPU_BACKENDS and cuda_api.available():
        from runtime.cuda.pipeline import CudaPipeline

        opened = {stage: open_on_device(bundle, stage, backend, precision, max_memory) for stage in stages}
        return CudaPipeline(bundle, opened, max_memory, shortlist=shortlist, workers=workers)
    if workers != 1:
        raise InputError(f"workers is {workers}; expected 1: {backend} runs one frame at a time here, on all cores")
    engines = {stage: open_stage(bundle, stage, backend, precision, threads) for stage in stages}
    return Pipeline(bundle.manifest.pipeline, engines, shortlist=shortlist)


def open_engine(backend: Backend, graph: Path, precision: Precision, threads: int | None) -> Engine:
    """Loads one ONNX graph.

    Raises:
        EngineError: the library cannot load the graph.
    """
    if backend == "openvino":
        from runtime.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(graph, precision, threads)
    from runtime.engines.onnxruntime import CPU, CUDA, OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, precision, threads, CUDA if backend == "onnxruntime-cuda" else CPU)
