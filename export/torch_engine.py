"""A stage's torch module behind the engine protocol: the reference that every engine is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runtime.engines.base import Array, Tensors


class TorchEngine:
    """Eager torch in float32. Inputs go to `forward` by name."""

    precision = "fp32"

    def __init__(self, module: nn.Module, outputs: Sequence[str]) -> None:
        self._module = module
        self._outputs = outputs

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        with torch.inference_mode():
            results = self._module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        values: Sequence[Tensor] = (results,) if isinstance(results, Tensor) else results
        return {name: value.contiguous().numpy() for name, value in zip(self._outputs, values, strict=True)}
