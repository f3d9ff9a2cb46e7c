"""cuda-core on NumPy memory. Streams run as late, or as early, as their events allow; freed memory is never read."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
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

        def copy() -> None:
            assert Buffer.live.get(self.handle) is self, "a copy into freed memory"
            assert Buffer.live.get(source.handle) is source, "a copy from freed memory"
            ctypes.memmove(self.handle, source.handle, self.size)

        stream.enqueue(copy)

    def close(self) -> None:
        assert Buffer.live.pop(self.handle, None) is self, "freed twice"


def alive(address: int) -> bool:
    """Whether memory that is not freed lies there."""
    return any(start <= address < start + buffer.size for start, buffer in Buffer.live.items())


class Event:
    """Knows where it was recorded last."""

    def __init__(self) -> None:
        self.mark: tuple[Stream, int] | None = None

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
    capturing: ClassVar[Capture | None] = None

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
        if not self._captured(("run", self, work)):
            self.work.append(work)
            self._hurry()

    def record(self, event: Event) -> Event:
        if not self._captured(("record", self, event)):
            event.mark = self, len(self.work)
            self.work.append(lambda: None)
            self._hurry()
        return event

    def wait(self, event: Event) -> None:
        capture = Stream.capturing
        if capture is not None and event in capture.recorded:
            capture.streams.setdefault(self, None)
        if not self._captured(("wait", self, event)):
            assert event.mark is not None, "waits for an event that was never recorded"
            self.work.append(event.mark)
            self._hurry()

    def create_graph_builder(self) -> Capture:
        return Capture(self)

    def sync(self) -> None:
        assert Stream.capturing is None, "a synchronise while capturing"
        self.advance(len(self.work))

    def advance(self, end: int) -> None:
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
        capture = Stream.capturing
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
        Stream.capturing = self
        return self

    def add(self, step: tuple[str, Stream, Any]) -> None:
        if Capture.refuse:
            Stream.capturing = None
            raise RuntimeError("operation not permitted when stream is capturing")
        self.steps.append(step)
        if step[0] == "record":
            self.recorded.add(step[2])

    def end_building(self) -> Capture:
        Stream.capturing = None
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


core = SimpleNamespace(
    Device=Device,
    Stream=Stream,
    LegacyPinnedMemoryResource=LegacyPinnedMemoryResource,
    EventOptions=lambda timing_enabled: None,
)
