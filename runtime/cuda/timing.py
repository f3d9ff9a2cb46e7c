"""When each engine and kernel of a frame ran, by events on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from runtime.cuda.device import Device

Mark = Callable[[str, str, Any], AbstractContextManager[None]]  # site, stage, stream -> around what is launched


def unmarked(site: str, stage: str, stream: Any) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class StageTime:
    """One launch: `start_ms` after the frame began; launches on parallel streams overlap."""

    site: str
    stage: str
    start_ms: float
    milliseconds: float


class Stopwatch:
    """Two events around every launch. Read only after the streams have been waited for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._spans: list[tuple[str, str, Any, Any]] = []

    @contextmanager
    def __call__(self, site: str, stage: str, stream: Any) -> Iterator[None]:
        begin, end = self._device.timer(), self._device.timer()
        stream.record(begin)
        yield
        stream.record(end)
        self._spans.append((site, stage, begin, end))

    def read(self) -> list[StageTime]:
        first = self._spans[0][2]
        return [
            StageTime(site, stage, float(begin - first), float(end - begin)) for site, stage, begin, end in self._spans
        ]
