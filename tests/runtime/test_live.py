"""Live sources: the newest frame, the last frame, errors of the source, and threads that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from runtime.live import newest


def wait_until(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.001)


def test_frames_that_arrive_meanwhile_are_skipped() -> None:
    given: list[int] = []
    first_taken = threading.Event()

    def source() -> Iterator[int]:
        for i in range(100):
            if i == 1:
                first_taken.wait(20)
            given.append(i)
            yield i

    frames = newest(source())
    assert next(frames) == 0
    first_taken.set()
    wait_until(lambda: len(given) == 100)
    rest = list(frames)
    assert rest[-1] == 99
    assert len(rest) <= 2  # the last frame, and perhaps one that was handed over before it


def test_a_slow_source_loses_nothing() -> None:
    asked = threading.Semaphore(0)

    def source() -> Iterator[int]:
        for i in range(5):
            asked.acquire(timeout=20)
            yield i

    frames = newest(source())
    seen = []
    for _ in range(5):
        asked.release()
        seen.append(next(frames))
    assert seen == [0, 1, 2, 3, 4]
    assert list(frames) == []


def test_no_frames() -> None:
    assert list(newest([])) == []


def test_an_error_of_the_source_comes_after_its_last_frame() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("cable pulled")

    seen = []
    with pytest.raises(ValueError, match="cable pulled"):
        seen.extend(newest(source()))
    with pytest.raises(ValueError, match="cable pulled"):
        for frame in newest(source()):
            seen.append(frame)
    assert seen == [1, 1]


def test_the_thread_ends_when_the_caller_stops_looking() -> None:
    released = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            released.set()

    frames = newest(endless())
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    wait_until(lambda: not any(thread.name == "newest frame" for thread in threading.enumerate()))
    assert released.wait(20)
