"""How much of the GPU's memory frames may take, beside the weights."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from runtime.errors import EngineError
from runtime.gpu import free_memory

RESERVE = 0.9  # of the free memory


class Budget:
    """Shared by all workers.

    Args:
        most: Bytes that all frames may take together; None: nearly all that is free.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._taken: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def left(self) -> int:
        free = int(RESERVE * free_memory())
        return free if self._most is None else min(free, self._most - sum(self._taken.values()))

    def take(self, key: Hashable, size: int, purpose: str) -> None:
        """Raises EngineError, with the numbers, before anything is allocated."""
        with self._lock:
            left = self.left()
            if size > left:
                raise EngineError(
                    f"{purpose}, {max(left, 0) / 1e6:.0f} MB may be used; name fewer classes or raise max_memory"
                )
            self._taken[key] = size

    def give_back(self, key: Hashable) -> None:
        with self._lock:
            self._taken.pop(key, None)
