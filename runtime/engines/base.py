"""What the pipeline asks of an engine library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]


class Engine(Protocol):
    """One stage, ready to run. Thread-safe only if its library is; the pipeline calls it from one thread."""

    @property
    def precision(self) -> str:
        """The precision that the arithmetic really has, read back from the library, in words."""
        ...

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        """Named arrays in; named, C-contiguous arrays out that later calls leave alone."""
        ...


class Binding(Protocol):
    """A stage on the GPU, bound to input shapes. Its addresses may change between runs, its shapes do not."""

    @property
    def outputs(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of every output."""
        ...

    def address(self, addresses: Mapping[str, int]) -> None:
        """Where inputs and outputs lie on the device, contiguous, from the next run on."""
        ...

    def enqueue(self, stream: int) -> None:
        """Queues a run behind what the stream holds. What is queued later sees its outputs.

        Raises:
            EngineError: the library refuses it.
        """
        ...


class DeviceEngine(Protocol):
    """The weights of one stage on the GPU."""

    @property
    def stage(self) -> str: ...

    @property
    def precision(self) -> str:
        """The precision that the arithmetic really has, in words."""
        ...

    @property
    def captures(self) -> bool:
        """Whether its runs may be captured into a CUDA graph around them."""
        ...

    def activation_memory(self) -> int:
        """Bytes on the device that a binding takes beside the weights; 0 where the library does not tell."""
        ...

    def bind(self, shapes: Shapes, stream: int) -> Binding:
        """For inputs of these shapes; `stream` takes what has to be set up on the device.

        Raises:
            EngineError: the engine cannot take these shapes, or there is no memory.
        """
        ...

    def close(self) -> None:
        """Frees the weights. All work must be done; the bindings are dead after it."""
        ...


def contiguous(inputs: Tensors) -> dict[str, Array]:
    return {name: np.ascontiguousarray(value) for name, value in inputs.items()}
