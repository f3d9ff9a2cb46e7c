"""cuda-core on NumPy memory: what a stream has not yet copied is not there, and freed memory is never read."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np


class Buffer:
    """Memory that is poisoned when it is made, and gone when it is closed."""

    live: ClassVar[dict[int, Buffer]] = {}

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = np.full(max(size, 1), 0xAB, np.uint8)
        self.handle = self.memory.ctypes.data
        Buffer.live[self.handle] = self

    def copy_from(self, source: Buffer, *, stream: Stream) -> None:
        assert source.size == self.size
        assert self.handle in Buffer.live
        assert source.handle in Buffer.live
        stream.queue.append(lambda: ctypes.memmove(self.handle, source.handle, self.size))

    def close(self) -> None:
        del Buffer.live[self.handle]


class Stream:
    """Work waits until `sync`, as on a GPU that is behind."""

    by_handle: ClassVar[dict[int, Stream]] = {}

    def __init__(self) -> None:
        self.queue: list[Any] = []
        self.handle = id(self)
        Stream.by_handle[self.handle] = self

    def sync(self) -> None:
        for work in self.queue:
            work()
        self.queue.clear()


class Event:
    def __init__(self) -> None:
        self.done = True

    def __sub__(self, other: Event) -> float:
        return 1.0


class Device:
    compute_capability = (8, 6)
    name = "NVIDIA Fake"
    properties = SimpleNamespace(integrated=False)
    entered = 0

    def __init__(self, number: int = 0) -> None:
        assert number == 0

    def set_current(self) -> None:
        Device.entered += 1

    def create_stream(self) -> Stream:
        return Stream()

    def create_event(self, options: Any) -> Event:
        return Event()

    def allocate(self, size: int, *, stream: Stream) -> Buffer:
        return Buffer(size)


class LegacyPinnedMemoryResource:
    def allocate(self, size: int, *, stream: Stream | None = None) -> Buffer:
        return Buffer(size)


core = SimpleNamespace(
    Device=Device,
    LegacyPinnedMemoryResource=LegacyPinnedMemoryResource,
    EventOptions=lambda timing_enabled: None,
)
