"""Workers and their slots: who holds one may have a frame in flight. A worker whose frame failed is replaced."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from runtime.cuda.worker import IN_FLIGHT, Slot, Worker
from runtime.errors import EngineError

log = logging.getLogger(__name__)


class Pool:
    """Frames are spread over the workers first, then queued behind each other."""

    def __init__(self, make: Callable[[], Worker], workers: int) -> None:
        self._make = make
        self._changed = threading.Condition()
        self._idle: dict[Worker, list[Slot]] = {}
        self._over = ""  # why nobody gets a slot any more
        for _ in range(workers):
            self._hire()

    def _hire(self) -> None:
        worker = self._make()
        self._idle[worker] = list(worker.slots)

    def workers(self) -> tuple[Worker, ...]:
        with self._changed:
            return tuple(self._idle)

    @contextmanager
    def slot(self) -> Iterator[tuple[Worker, Slot]]:
        """Waits for a free one.

        Raises:
            EngineError: the pool is closed, or the last worker failed and could not be replaced.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._best())
            if self._over:
                raise EngineError(self._over)
            worker = self._best()
            assert worker is not None
            slot = self._idle[worker].pop()
        try:
            yield worker, slot
        finally:
            with self._changed:
                self._idle[worker].append(slot)
                # Not before its other frame is over: its result lies in the worker's memory.
                if worker.failed and len(self._idle[worker]) == IN_FLIGHT:
                    self._replace(worker)
                self._changed.notify_all()

    def _best(self) -> Worker | None:
        healthy = [worker for worker, slots in self._idle.items() if slots and not worker.failed]
        return max(healthy, key=lambda worker: len(self._idle[worker]), default=None)

    def _replace(self, worker: Worker) -> None:
        del self._idle[worker]
        try:
            worker.close()
        except Exception as error:  # a dead context cannot even free
            log.warning("a worker that failed could not be freed: %s", error)
        if self._over:
            return
        try:
            self._hire()
        except Exception as error:
            if not self._idle:
                self._over = f"the GPU did not recover ({error}); load the bundle in a new process"

    def close(self) -> None:
        """Waits for the frames in flight and frees everything."""
        with self._changed:
            self._over = "this pipeline is closed"
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(len(slots) == IN_FLIGHT for slots in self._idle.values()))
            workers, self._idle = tuple(self._idle), {}
        for worker in workers:
            worker.close()
