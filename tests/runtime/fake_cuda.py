"""cuda-core on NumPy memory. Streams run as late, or as early, as their events allow; freed memory is never read."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

DEVICE = threading.RLock()  # streams are touched by one thread at a time
THREAD = threading.local()


def capturing() -> Capture | None:
    """What this thread's launches go into."""
    return getattr(THREAD, "capture", None)


class Buffer:
    """Memory that is poisoned when it is made, and gone when it is closed."""

    live: ClassVar[dict[int, Buffer]] = {}

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = np.full(max(size, 1), 0xAB, np.uint8)
        self.handle = self.memory.ctypes.data
        Buffer.live[self.handle] = self

    @staticmethod
    def from_handle(address: int, size: int) -> Part:
        return Part(address, size)

    def copy_from(self, source: Buffer | Part, *, stream: Stream) -> None:
        copy_bytes(self, source, stream)

    def close(self) -> None:
        assert Buffer.live.pop(self.handle, None) is self, "freed twice"


class Part:
    """Some bytes of a buffer, which somebody else owns."""

    def __init__(self, address: int, size: int) -> None:
        self.handle, self.size = address, size

    def copy_from(self, source: Buffer | Part, *, stream: Stream) -> None:
        copy_bytes(self, source, stream)


def copy_bytes(target: Buffer | Part, source: Buffer | Part, stream: Stream) -> None:
    assert source.size == target.size

    def copy() -> None:
        assert alive(target.handle, target.size), "a copy into freed memory"
        assert alive(source.handle, source.size), "a copy from freed memory"
        ctypes.memmove(target.handle, source.handle, target.size)

    stream.enqueue(copy)


def alive(address: int, size: int = 1) -> bool:
    """Whether memory that is not freed lies there."""
    return any(start <= address and address + size <= start + buffer.size for start, buffer in Buffer.live.items())


class Event:
    """Knows where it was recorded last."""

    def __init__(self) -> None:
        self.mark: tuple[Stream, int] | None = None

    def sync(self) -> None:
        assert self.mark is not None, "waits for an event that was never recorded"
        stream, index = self.mark
        stream.advance(index + 1)

    def __sub__(self, other: Event) -> float:
        assert self.mark is not None
        assert other.mark is not None
        for stream, index in (self.mark, other.mark):
            assert stream.done > index, "an event is read before the device has come to it"
        return 1.0


class Stream:
    """Work in order. A late stream runs when it is waited for; an early one as soon as the events allow it.

    The first stream of a frame is late and the others early, or all are late: a missing wait shows in one of both.
    """

    by_handle: ClassVar[dict[int, Stream]] = {}
    early: ClassVar[bool] = False

    def __init__(self) -> None:
        self.work: list[Any] = []
        self.done = 0
        self.handle = id(self)
        self.is_early = False
        Stream.by_handle[self.handle] = self

    @staticmethod
    def from_handle(handle: int) -> Stream:
        return Stream.by_handle[handle]

    def enqueue(self, work: Callable[[], None]) -> None:
        with DEVICE:
            if not self._captured(("run", self, work)):
                self.work.append(work)
                self._hurry()

    def record(self, event: Event) -> Event:
        with DEVICE:
            if not self._captured(("record", self, event)):
                event.mark = self, len(self.work)
                self.work.append(lambda: None)
                self._hurry()
        return event

    def wait(self, event: Event) -> None:
        capture = capturing()
        if capture is not None and event in capture.recorded:
            capture.streams.setdefault(self, None)
        with DEVICE:
            if not self._captured(("wait", self, event)):
                assert event.mark is not None, "waits for an event that was never recorded"
                self.work.append(event.mark)
                self._hurry()

    def create_graph_builder(self) -> Capture:
        return Capture(self)

    def sync(self) -> None:
        assert capturing() is None, "a synchronise while capturing"
        self.advance(len(self.work))

    def advance(self, end: int) -> None:
        with DEVICE:
            while self.done < end:
                work = self.work[self.done]
                if isinstance(work, tuple):
                    stream, index = work
                    stream.advance(index + 1)
                    self.done += 1
                else:
                    self.done += 1
                    work()

    def _hurry(self) -> None:
        while self.is_early and Stream.early and self.done < len(self.work):
            work = self.work[self.done]
            if isinstance(work, tuple) and work[0].done <= work[1]:
                return
            self.advance(self.done + 1)

    def _captured(self, step: tuple[str, Stream, Any]) -> bool:
        capture = capturing()
        if capture is None or self not in capture.streams:
            return False
        capture.add(step)
        return True


class Capture:
    """A graph builder: streams join by waiting for an event of the capture, and must be waited for at its end."""

    refuse: ClassVar[bool] = False  # as an engine does that synchronises

    def __init__(self, stream: Stream) -> None:
        self.main = stream
        self.streams: dict[Stream, None] = {stream: None}
        self.recorded: set[Event] = set()
        self.steps: list[tuple[str, Stream, Any]] = []

    def begin_building(self, mode: str) -> Capture:
        assert mode == "thread_local"
        THREAD.capture = self
        return self

    def add(self, step: tuple[str, Stream, Any]) -> None:
        if Capture.refuse:
            THREAD.capture = None
            raise RuntimeError("operation not permitted when stream is capturing")
        self.steps.append(step)
        if step[0] == "record":
            self.recorded.add(step[2])

    def end_building(self) -> Capture:
        THREAD.capture = None
        waited = {event for kind, stream, event in self.steps if kind == "wait" and stream is self.main}
        for stream in self.streams:
            last = [step for step in self.steps if step[1] is stream][-1]
            assert stream is self.main or (last[0] == "record" and last[2] in waited), "unjoined work in a capture"
        return self

    def complete(self) -> Graph:
        return Graph(self)


class Graph:
    """Replays the steps on streams of its own beside the one that it is launched in."""

    live = 0

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.launches = 0
        Graph.live += 1

    def upload(self, stream: Stream) -> None:
        pass

    def launch(self, stream: Stream) -> None:
        self.launches += 1
        streams = {one: stream if one is self.capture.main else side_stream() for one in self.capture.streams}
        events: dict[Event, Event] = {}
        for kind, one, what in self.capture.steps:
            if kind == "run":
                streams[one].enqueue(what)
            elif kind == "record":
                events[what] = Event()
                streams[one].record(events[what])
            else:
                streams[one].wait(events[what])

    def close(self) -> None:
        Graph.live -= 1


def side_stream() -> Stream:
    stream = Stream()
    stream.is_early = True
    return stream


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


class StridedMemoryView:
    """Another library's array, behind what its stream holds; or a buffer's for another library."""

    def __init__(self, array: Any, stream_ptr: int) -> None:
        self.ptr, self.shape, self.strides, self.dtype = 0, (), None, np.dtype(np.uint8)
        if hasattr(array, "__dlpack__"):
            memory = array.__dlpack__(stream=stream_ptr)
            self.ptr, self.shape, self.dtype = memory.ctypes.data, memory.shape, memory.dtype
            self.strides = tuple(stride // memory.itemsize for stride in memory.strides)
        else:
            about = array.__cuda_array_interface__
            self.ptr, self.shape, self.dtype = about["data"][0], about["shape"], np.dtype(about["typestr"])
            if about["strides"] is not None:
                self.strides = tuple(stride // self.dtype.itemsize for stride in about["strides"])
            if about["stream"] is not None:
                Stream.by_handle[stream_ptr].wait(Stream.by_handle[about["stream"]].record(Event()))
        self.owner = array

    @classmethod
    def from_any_interface(cls, array: Any, stream_ptr: int) -> StridedMemoryView:
        return cls(array, stream_ptr)

    @classmethod
    def from_buffer(cls, buffer: Buffer, shape: tuple[int, ...], *, dtype: Any) -> Any:
        memory = buffer.memory.view(dtype).reshape(shape)
        return SimpleNamespace(__dlpack__=lambda stream=None: memory)  # in the place of a capsule


core = SimpleNamespace(
    Buffer=Buffer,
    utils=SimpleNamespace(StridedMemoryView=StridedMemoryView),
    Device=Device,
    Stream=Stream,
    LegacyPinnedMemoryResource=LegacyPinnedMemoryResource,
    EventOptions=lambda timing_enabled: None,
)
