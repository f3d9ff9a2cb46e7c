"""Device 0 as the pipeline uses it. Everything here is cuda-core's; a fake of it runs in the tests."""

from __future__ import annotations

import ctypes
import importlib
import math
from typing import Any

import numpy as np

from runtime.engines.base import Array
from runtime.gpu import cuda_core

DType = np.dtype[Any]


class Device:
    """The primary context, which torch, CuPy and Numba share, and what is allocated in it."""

    def __init__(self) -> None:
        self._core = cuda_core()
        self._device = self._core.Device(0)
        self._pinned = self._core.LegacyPinnedMemoryResource()
        self._options = self._core.EventOptions(timing_enabled=True)
        self.enter()
        self._default = self.stream()
        self.integrated = bool(self._device.properties.integrated)

    def enter(self) -> None:
        """Makes the context current in the calling thread: it is a property of the thread, and another library, such as
        PyCUDA with its autoinit, may have put its own there."""
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

    def part(self, whole: DeviceTensor, size: int) -> Any:
        """The first bytes of a buffer, for a copy; it owns nothing."""
        return self._core.Buffer.from_handle(whole.address, size)

    def view(self, array: Any, stream: Any) -> Any:
        """Another library's array by DLPack or the CUDA array interface, not copied: `ptr`, `shape`, `strides` in
        elements (None: contiguous), `dtype`. What its owner still computes comes before later work of `stream`."""
        views = self._utils().StridedMemoryView
        make = getattr(views, "from_any_interface", views)  # the constructor did that before version 1
        return make(array, stream_ptr=int(stream.handle))

    def share(self, tensor: DeviceTensor) -> Any:
        """The same memory with DLPack's methods."""
        return self._utils().StridedMemoryView.from_buffer(tensor.buffer, tensor.shape, dtype=tensor.dtype)

    def _utils(self) -> Any:
        return getattr(self._core, "utils", None) or importlib.import_module(f"{self._core.__name__}.utils")

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
    """Page-locked host memory, which copies need in order to run beside other work. The GPU can read it too."""

    @property
    def array(self) -> Array:
        return self.first(self.shape, self.dtype)

    def first(self, shape: tuple[int, ...], dtype: DType) -> Array:
        """An array at its start, by address: before NumPy 2.1 arrays from DLPack are read-only."""
        memory = (ctypes.c_uint8 * (math.prod(shape) * dtype.itemsize)).from_address(self.address)
        return np.ndarray(shape, dtype, buffer=memoryview(memory))

    def upload(self, target: DeviceTensor, stream: Any) -> None:
        target.buffer.copy_from(self.buffer, stream=stream)

    def download(self, source: DeviceTensor, stream: Any) -> None:
        self.buffer.copy_from(source.buffer, stream=stream)
