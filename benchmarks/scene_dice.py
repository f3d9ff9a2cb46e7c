"""Random draws that are the same on every machine and with every NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")


class Dice:
    """Draws from the raw PCG64 stream.

    NumPy promises that stream for ever, but not what `Generator` makes of it.
    """

    def __init__(self, *seed: int) -> None:
        self._stream = np.random.PCG64(np.random.SeedSequence(seed))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * ((self._stream.random_raw() >> 11) * 2.0**-53)

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """One of low ... high, both included."""
        return low + math.floor(self.uniform() * (high - low + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.integer(0, len(items) - 1)]

    def sign(self) -> int:
        return 1 if self.chance(0.5) else -1

    def log_uniform(self, low: float, high: float) -> float:
        return rounded(low * math.exp(self.uniform(0.0, math.log(high / low))))

    def octets(self, *shape: int) -> npt.NDArray[np.uint8]:
        """`shape` uint8, uniform."""
        count = math.prod(shape)
        words: npt.NDArray[np.uint64] = self._stream.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].reshape(shape)


def rounded(value: float) -> float:
    """`value` without its last bits: C libraries differ there in sin, cos and exp."""
    return round(value, 8)


def direction(angle: float) -> tuple[float, float]:
    """(cos, sin) of `angle` in radians, alike on every machine."""
    return rounded(math.cos(angle)), rounded(math.sin(angle))
