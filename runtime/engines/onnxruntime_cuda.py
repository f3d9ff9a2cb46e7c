"""ONNX Runtime on CUDA between device buffers: I/O binding, a stream of its own, and CUDA graphs of its own."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from runtime.cuda.device import Device
from runtime.engines.base import Shapes
from runtime.engines.onnxruntime import CUDA, NO_TF32, one_line, open_session, session_options
from runtime.errors import EngineError
from runtime.gpu import cuda_core
from runtime.manifest import StageEntry
from runtime.profiles import output_shapes

MOST_GRAPHS = 64  # of a session, which keeps them until it is closed
NO_GRAPH = -1  # the graph id that means a plain run
FIRST_RUN = threading.Lock()  # it allocates and captures
Specs = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class OnnxRuntimeCudaEngine:
    """A session of a stage, a `runtime.engines.base.DeviceEngine`.

    ONNX Runtime ties a session to one stream. Here it is one of the session's own: before a run it waits for the
    caller's stream, after it the caller's stream waits for it. So the weights lie on the GPU once, and the memory for
    activations, which grows to what the largest shape needs, serves all bindings, streams and workers. The price: runs
    of one stage follow each other. The backbone's on the crops and on the whole image do not overlap, as TensorRT's do.

    A CUDA graph of ONNX Runtime's belongs to a thread, to shapes and to addresses: all runs take place in one thread,
    and every set of shapes and addresses has a graph. While one is captured, in the first run of a set, CUDA refuses
    allocations in all threads of the process: first runs of all stages take turns, other libraries are not held back.

    Args:
        precision: What the graph computes in. fp16 graphs too have float32 inputs and outputs.
        memory_limit: Bytes for the activations of this stage; None: what they need.

    Raises:
        EngineError: no CUDA provider or cuda-core, or the graph cannot be loaded.
    """

    captures = False  # a stream that is being captured takes no launches of graphs

    def __init__(self, stage: StageEntry, graph: Path, precision: str, memory_limit: int | None = None) -> None:
        self.stage, self.precision = stage.name, precision
        self._entry, self._graph, self._memory_limit = stage, graph, memory_limit
        self._device = Device()
        self._stream = self._device.stream()
        self._before, self._after = self._device.timer(), self._device.timer()
        self._sites: dict[Any, Site] = {}
        self._most_graphs = MOST_GRAPHS
        self._session: Any = None
        try:
            self._session = self._open(graphs=True)
        except EngineError as error:
            self._without_graphs(error)
        self._thread = ThreadPoolExecutor(1, f"onnxruntime {self.stage}", initializer=self._device.enter)

    def _open(self, graphs: bool) -> Any:
        provider_options = NO_TF32 | {
            "user_compute_stream": str(int(self._stream.handle)),
            "do_copy_in_default_stream": "1",
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": str(int(graphs)),
        }
        if self._memory_limit is not None:
            provider_options["gpu_mem_limit"] = str(self._memory_limit)
        options = session_options(threads=1)
        # Weights beside the arena, which then holds activations only and is what the limit is for.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        return open_session(self._graph, options, CUDA, provider_options)

    def _without_graphs(self, reason: Exception) -> None:
        """Opens the session again, on a stream that no failed capture has touched."""
        with suppress(Exception):  # one that was touched cannot be waited for
            self._stream.sync()
        self._sites.clear()
        self._session, self._most_graphs = None, 0
        self._stream = self._device.stream()
        self._session = self._open(graphs=False)
        warnings.warn(f"stage {self.stage} runs without a CUDA graph of its own: {reason}", stacklevel=2)

    def activation_memory(self) -> int:
        """0: ONNX Runtime does not tell."""
        return 0

    def bind(self, shapes: Shapes, stream: int) -> OnnxRuntimeCudaBinding:
        """Nothing is allocated: that is up to the first run."""
        inputs = {one.name: (tuple(shapes[one.name]), np.dtype(one.dtype)) for one in self._entry.inputs}
        found = output_shapes(self._entry, shapes)
        outputs = {one.name: (found[one.name], np.dtype(one.dtype)) for one in self._entry.outputs}
        return OnnxRuntimeCudaBinding(self, inputs, outputs)

    def run(self, binding: OnnxRuntimeCudaBinding, stream: int) -> None:
        """Raises EngineError where ONNX Runtime fails."""
        if self._session is None:
            raise EngineError(f"stage {self.stage}: its session is closed; load the bundle again")
        self._thread.submit(self._run_between, binding, stream).result()

    def _run_between(self, binding: OnnxRuntimeCudaBinding, stream: int) -> None:
        """What the caller's stream holds, the run, what it will hold."""
        caller = cuda_core().Stream.from_handle(stream)
        caller.record(self._before)
        site = self._site(binding)
        try:
            self._run(site)
        except EngineError as error:
            if not site.has_graph or site.has_run:
                raise
            self._without_graphs(error)
            self._run(self._site(binding))
        self._stream.record(self._after)
        caller.wait(self._after)

    def _run(self, site: Site) -> None:
        self._stream.wait(self._before)
        try:
            with nullcontext() if site.has_run else FIRST_RUN:
                self._session.run_with_iobinding(site.binding, site.options)
        except Exception as error:  # the library raises its own classes, none of them public
            raise EngineError(f"stage {self.stage}: ONNX Runtime failed: {one_line(error)}") from None
        site.has_run = True

    def _site(self, binding: OnnxRuntimeCudaBinding) -> Site:
        """Kept where there is a graph for it."""
        key = binding.key()
        if key in self._sites:
            return self._sites[key]
        if len(self._sites) == self._most_graphs:
            return Site(io_binding(self._session, binding), run_options(NO_GRAPH), has_graph=False)
        number = len(self._sites) + 1
        self._sites[key] = Site(io_binding(self._session, binding), run_options(number), has_graph=True)
        if number == self._most_graphs:
            warnings.warn(
                f"stage {self.stage} has {number} CUDA graphs; further shapes and buffers run without one", stacklevel=2
            )
        return self._sites[key]

    def close(self) -> None:
        self._stream.sync()
        self._sites.clear()
        self._session = None
        self._thread.shutdown()


@dataclass
class Site:
    """Shapes and addresses as ONNX Runtime takes them."""

    binding: Any
    options: Any
    has_graph: bool
    has_run: bool = False


class OnnxRuntimeCudaBinding:
    """A `runtime.engines.base.Binding`."""

    def __init__(self, engine: OnnxRuntimeCudaEngine, inputs: Specs, outputs: Specs) -> None:
        self._engine = engine
        self.inputs, self.outputs = inputs, outputs
        self.addresses: dict[str, int] = {}

    def address(self, addresses: Mapping[str, int]) -> None:
        self.addresses.update(addresses)

    def enqueue(self, stream: int) -> None:
        self._engine.run(self, stream)

    def key(self) -> Any:
        """What a CUDA graph depends on. The outputs' shapes follow from the inputs'."""
        shapes = tuple((name, shape) for name, (shape, _) in self.inputs.items())
        return shapes, tuple(sorted(self.addresses.items()))


def io_binding(session: Any, binding: OnnxRuntimeCudaBinding) -> Any:
    found = session.io_binding()
    for name, (shape, dtype) in binding.inputs.items():
        found.bind_input(name, "cuda", 0, dtype.type, shape, binding.addresses[name])
    for name, (shape, dtype) in binding.outputs.items():
        found.bind_output(name, "cuda", 0, dtype.type, shape, binding.addresses[name])
    return found


def run_options(graph: int) -> Any:
    """The caller waits for the stream when it needs the results."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
