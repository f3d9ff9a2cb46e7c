"""TensorRT and TensorRT-RTX engines: host arrays in and out, device buffers kept between calls, one stream."""

from __future__ import annotations

import ctypes
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines.base import Array, Tensors, contiguous
from runtime.engines.tensorrt_library import Library
from runtime.errors import EngineError
from runtime.gpu import cuda_core
from runtime.manifest import EngineEntry, Profile
from runtime.profiles import accepts


class TensorRtEngine:
    """Engine protocol. An execution context for every profile, made when it is first needed.

    Raises:
        EngineError: the library refuses the engine, or an input lies outside every profile.
    """

    def __init__(self, library: Library, root: Path, entry: EngineEntry) -> None:
        self._library, self._key = library, entry.key
        self._device = Device()
        runtime = library.module.Runtime(library.logger)
        self._engine = runtime.deserialize_cuda_engine((root / entry.path).read_bytes())
        if self._engine is None:  # the library raises nothing
            raise EngineError(f"stage {entry.key.stage}: the engine does not open: {library.last_error()}")
        self._contexts: dict[int, Any] = {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        output = library.module.TensorIOMode.OUTPUT
        self._outputs = [name for name in names if self._engine.get_tensor_mode(name) == output]
        share = entry.facts.flops.get(entry.key.precision, 1.0)
        self.precision = f"{entry.key.precision}, {share:.0%} of the FLOPs"

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        arrays = contiguous(inputs)
        self._device.enter()
        context = self._context(profile_of(self._key.stage, self._key.profiles, arrays))
        for name, array in arrays.items():
            context.set_input_shape(name, array.shape)
            context.set_tensor_address(name, self._device.upload(name, array))
        results = {}
        for name in self._outputs:
            dtype = np.dtype(self._library.module.nptype(self._engine.get_tensor_dtype(name)))
            shape = tuple(context.get_tensor_shape(name))
            context.set_tensor_address(name, self._device.reserve(name, shape, dtype))
            results[name] = (shape, dtype)
        if not context.execute_async_v3(self._device.stream_handle):
            raise EngineError(f"stage {self._key.stage}: the engine failed: {self._library.last_error()}")
        return self._device.download(results)

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None:
                raise EngineError(f"stage {self._key.stage}: no execution context: {self._library.last_error()}")
            context.set_optimization_profile_async(profile, self._device.stream_handle)
            self._contexts[profile] = context
        return self._contexts[profile]


def profile_of(stage: str, profiles: tuple[Profile, ...], inputs: Mapping[str, Array]) -> int:
    shapes = {name: array.shape for name, array in inputs.items()}
    for i, profile in enumerate(profiles):
        if accepts(profile, shapes):
            return i
    given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    most = {name: largest for name, (_, _, largest) in profiles[-1].shapes.items()}
    raise EngineError(
        f"stage {stage}: {given} lies outside every profile (the largest is {most}); for more classes build again "
        "with --most-classes"
    )


class Device:
    """One stream of device 0, with a pinned host buffer and a device buffer for every tensor and size in use."""

    MOST_BUFFERS = 32  # the least recently used go first: class counts may change from frame to frame

    def __init__(self) -> None:
        core = cuda_core()
        self._device = core.Device(0)
        self.enter()
        self._stream = self._device.create_stream()
        self._pinned = core.LegacyPinnedMemoryResource()
        self._buffers: OrderedDict[tuple[str, int], tuple[Any, Any]] = OrderedDict()
        self.stream_handle = int(self._stream.handle)

    def enter(self) -> None:
        """Makes the primary context, which torch and CuPy share, current in the calling thread."""
        self._device.set_current()

    def upload(self, name: str, array: Array) -> int:
        """Copies an array to the device; returns the address."""
        host, device = self._pair(name, array.nbytes)
        view(host, array.shape, array.dtype)[...] = array
        device.copy_from(host, stream=self._stream)
        return int(device.handle)

    def reserve(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        return int(self._pair(name, size_of(shape, dtype))[1].handle)

    def download(self, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, Array]:
        """Waits for the stream; the arrays are the caller's own."""
        hosts = {}
        for name, (shape, dtype) in tensors.items():
            hosts[name], device = self._pair(name, size_of(shape, dtype))
            hosts[name].copy_from(device, stream=self._stream)
        self._stream.sync()
        return {name: view(hosts[name], *spec).copy() for name, spec in tensors.items()}

    def _pair(self, name: str, size: int) -> tuple[Any, Any]:
        """Of exactly this size: copies take whole buffers."""
        key = (name, size)
        if key not in self._buffers:
            host = self._pinned.allocate(size, stream=self._stream)
            self._buffers[key] = host, self._device.allocate(size, stream=self._stream)
        self._buffers.move_to_end(key)
        while len(self._buffers) > self.MOST_BUFFERS:
            for buffer in self._buffers.popitem(last=False)[1]:
                buffer.close()
        return self._buffers[key]


def size_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(shape) * dtype.itemsize


def view(buffer: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A pinned buffer as an array, without a copy. By address: before NumPy 2.1 arrays from DLPack are read-only."""
    memory = (ctypes.c_uint8 * buffer.size).from_address(int(buffer.handle))
    return np.frombuffer(memory, dtype).reshape(shape)
