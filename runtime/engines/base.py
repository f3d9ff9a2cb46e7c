"""What the pipeline asks of an engine library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


class Engine(Protocol):
    """One stage, ready to run. Thread-safe only if its library is; the pipeline calls it from one thread."""

    @property
    def precision(self) -> str:
        """The precision that the arithmetic really has, read back from the library, in words."""
        ...

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        """Named arrays in; named, C-contiguous arrays out that later calls leave alone."""
        ...


def contiguous(inputs: Tensors) -> dict[str, Array]:
    return {name: np.ascontiguousarray(value) for name, value in inputs.items()}
