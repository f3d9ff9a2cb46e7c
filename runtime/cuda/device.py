"""Device 0 as the pipeline uses it. Everything here is cuda-core's; a fake of it runs in the tests."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from runtime.engines.base import Array
from runtime.gpu import cuda_core

DType = np.dtype[Any]


class Device:
    """The primary context, which torch and CuPy share, and what is allocated in it."""

    def __init__(self) -> None:
        core = cuda_core()
        self._device = core.Device(0)
        self._pinned = core.LegacyPinnedMemoryResource()
        self._options = core.EventOptions(timing_enabled=True)
        self.enter()
        self._default = self.stream()

    def enter(self) -> None:
        """Makes the context current in the calling thread: it is a property of the thread."""
        self._device.set_current()

    def stream(self) -> Any:
        return self._device.create_stream()

    def timer(self) -> Any:
        """An event that can be subtracted from another: milliseconds."""
        return self._device.create_event(self._options)

    def tensor(self, shape: tuple[int, ...], dtype: DType) -> DeviceTensor:
        size = math.prod(shape) * dtype.itemsize
        return DeviceTensor(self._device.allocate(max(size, 1), stream=self._default), shape, dtype)

    def pinned(self, shape: tuple[int, ...], dtype: DType) -> PinnedArray:
        size = math.prod(shape) * dtype.itemsize
        return PinnedArray(self._pinned.allocate(max(size, 1), stream=self._default), shape, dtype)

    def sync(self) -> None:
        """Waits for the allocations."""
        self._default.sync()


class DeviceTensor:
    """Contiguous device memory with a shape."""

    def __init__(self, buffer: Any, shape: tuple[int, ...], dtype: DType) -> None:
        self.buffer, self.shape, self.dtype = buffer, shape, dtype
        self.address = int(buffer.handle)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def close(self) -> None:
        self.buffer.close()


class PinnedArray(DeviceTensor):
    """Page-locked host memory, which copies need in order to run beside other work."""

    @property
    def array(self) -> Array:
        """By address: before NumPy 2.1 arrays from DLPack are read-only."""
        memory = (ctypes.c_uint8 * self.nbytes).from_address(self.address)
        return np.ndarray(self.shape, self.dtype, buffer=memoryview(memory))

    def upload(self, target: DeviceTensor, stream: Any) -> None:
        target.buffer.copy_from(self.buffer, stream=stream)

    def download(self, source: DeviceTensor, stream: Any) -> None:
        self.buffer.copy_from(source.buffer, stream=stream)
