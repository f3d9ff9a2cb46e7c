"""Live sources: always the newest frame, never a queue that grows."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Frame = TypeVar("Frame")


def newest(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Reads `frames` in a thread and yields the latest one whenever the caller is ready.

    Frames that arrive in between are skipped; the last one never is. An exception of the source is raised here.
    """
    mailbox: _Mailbox[Frame] = _Mailbox()
    threading.Thread(target=mailbox.fill, args=(frames,), name="newest frame", daemon=True).start()
    try:
        yield from mailbox
    finally:
        mailbox.stop()


class _Mailbox(Iterable[Frame]):
    """Room for one frame; a newer one replaces it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Frame] = []
        self._ended = False
        self._stopped = False
        self._error: Exception | None = None

    def fill(self, frames: Iterable[Frame]) -> None:
        try:
            for frame in frames:
                with self._changed:
                    if self._stopped:
                        return
                    self._waiting[:] = [frame]
                    self._changed.notify()
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    break
                frame = self._waiting.pop()
            yield frame
        if self._error is not None:
            raise self._error
