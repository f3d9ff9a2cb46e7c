"""Where the CUDA kernels run in the tests: on a GPU, or, from the same source, emulated on the CPU."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = Path(__file__).parent / "cuda_emulator"
MARGIN = 256  # bytes around every buffer that must stay as they are
POISON = 0xFF  # NaN in every float type, and no class in every label type


class Memory:
    """An array on a device, at `offset` bytes from a 256-byte boundary, between margins of poison."""

    def __init__(self, device: Any, array: NDArray[Any], offset: int = 0) -> None:
        self._device, self._shape, self._dtype = device, array.shape, array.dtype
        self._before, self._bytes = MARGIN + offset, array.nbytes
        everything = np.full(self._before + self._bytes + MARGIN, POISON, np.uint8)
        everything[self._before : -MARGIN] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._base = device.allocate(everything)
        self.address = self._base + self._before
        self._fence(True)

    def _fence(self, up: bool) -> None:
        self._device.fence(self._base, self._before, up)
        self._device.fence(self.address + self._bytes, MARGIN, up)

    def array(self) -> NDArray[Any]:
        self._fence(False)
        everything = self._device.read(self._base, self._before + self._bytes + MARGIN)
        outside = np.concatenate([everything[: self._before], everything[-MARGIN:]])
        assert (outside == POISON).all(), "written outside the buffer"
        return everything[self._before : -MARGIN].view(self._dtype).reshape(self._shape)


class Device:
    def fence(self, address: int, count: int, up: bool) -> None:
        """Where reading can be noticed: these bytes must not be."""

    def upload(self, array: NDArray[Any], offset: int = 0) -> Memory:
        return Memory(self, array, offset)

    def poisoned(self, shape: tuple[int, ...], dtype: Any, offset: int = 0) -> Memory:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return Memory(self, np.full(size, POISON, np.uint8).view(dtype).reshape(shape), offset)


class EmulatedDevice(Device):
    """Device memory is host memory."""

    def __init__(self) -> None:
        self._alive: list[NDArray[np.uint8]] = []
        process = ctypes.CDLL(None)  # AddressSanitizer's calls, where the tests run under it
        self._hide = getattr(process, "__asan_poison_memory_region", None)
        self._show = getattr(process, "__asan_unpoison_memory_region", None)

    def fence(self, address: int, count: int, up: bool) -> None:
        if self._hide and self._show:
            (self._hide if up else self._show)(ctypes.c_void_p(address), ctypes.c_size_t(count))

    def close(self) -> None:
        for room in self._alive:
            self.fence(room.ctypes.data, room.nbytes, False)

    def allocate(self, content: NDArray[np.uint8]) -> int:
        room = np.empty(len(content) + MARGIN, np.uint8)
        start = -room.ctypes.data % MARGIN
        room[start : start + len(content)] = content
        self._alive.append(room)
        return room.ctypes.data + start

    def read(self, address: int, count: int) -> NDArray[np.uint8]:
        return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address)).copy()


class EmulatedKernels:
    """What `kernels._kernels_cuda` offers, built from the same source by the C++ compiler."""

    def __init__(self, library: ctypes.CDLL) -> None:
        number, address, flag = ctypes.c_int64, ctypes.c_size_t, ctypes.c_bool
        small = ctypes.c_int
        signatures = {
            "preprocess": [address, *[number] * 3, small, small, *[number] * 3, flag, small, *[address] * 3],
            "lga_merge": [address, address, *[number] * 4, small, flag, flag, address, address],
            "upsample_argmax": [address, *[number] * 5, small, number, number, small, address, address, flag, address],
        }
        for name, arguments in signatures.items():
            pointer = ctypes.c_void_p.in_dll(library, f"emulated_{name}").value
            function = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(pointer)
            setattr(self, name, self._raising(name, function))

    @staticmethod
    def _raising(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> None:
            if error := function(*arguments):
                raise RuntimeError(f"{name}: CUDA launch failed: {error}")

        return call

    def device_count(self) -> int:
        return 1


def build_emulator(folder: Path) -> ctypes.CDLL:
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler) or os.uname().sysname != "Linux":
        pytest.skip(f"the emulator of CUDA needs Linux and {compiler}")
    flags = ["-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-w"]
    flags += shlex.split(os.environ.get("CUDA_EMULATOR_FLAGS", ""))
    includes = [f"-I{path}" for path in (EMULATOR, ROOT / "kernels/include", ROOT / "kernels/cuda")]
    sources = [*sorted((ROOT / "kernels/cuda").glob("*.cu")), *sorted(EMULATOR.glob("*.cpp"))]
    objects = []
    for source in sources:
        objects.append(folder / f"{source.name}.o")
        command = [compiler, *flags, *includes, "-x", "c++", "-c", source, "-o", objects[-1]]
        result = subprocess.run(command, capture_output=True, text=True)
        if "_Float16" in result.stderr:
            pytest.skip(f"the emulator of CUDA needs a {compiler} that knows _Float16")
        assert result.returncode == 0, result.stderr
    library = folder / "emulated.so"
    subprocess.run([compiler, *flags, "-shared", *objects, "-o", library], check=True)
    return ctypes.CDLL(str(library))


class Gpu(Device):
    """By the driver itself, so that the tests need no other CUDA package."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        context, self._alive = ctypes.c_void_p(), []
        self._call("cuInit", 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), 1)  # waits for no other stream
        self.stream = stream.value

    def _call(self, name: str, *arguments: Any) -> None:
        error = getattr(self._driver, name)(*arguments)
        assert error == 0, f"{name}: CUresult {error}"

    def allocate(self, content: NDArray[np.uint8]) -> int:
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(len(content)))
        self._alive.append(pointer)
        self.write(pointer.value, content)
        return pointer.value

    def write(self, address: int, content: NDArray[np.uint8]) -> None:
        source = np.ascontiguousarray(content)
        size = ctypes.c_size_t(source.nbytes)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(source.ctypes.data), size)
        self.wait()

    def read(self, address: int, count: int) -> NDArray[np.uint8]:
        self.wait()
        content = np.empty(count, np.uint8)
        size = ctypes.c_size_t(count)
        self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(content.ctypes.data), ctypes.c_uint64(address), size)
        return content

    def wait(self) -> None:
        self._call("cuCtxSynchronize")

    def capture(self, launch: Any) -> Any:
        """Records what `launch` starts on `self.stream`; the result runs it."""
        stream, graph, ready = ctypes.c_void_p(self.stream), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, 1)  # thread-local
        launch()
        self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        return lambda: self._call("cuGraphLaunch", ready, stream)

    def close(self) -> None:
        self.wait()
        for pointer in self._alive:
            self._call("cuMemFree_v2", pointer)
