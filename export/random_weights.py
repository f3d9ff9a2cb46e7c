"""Weights for work on shapes and speed. They segment nothing, and the bundle says so."""

from __future__ import annotations

import torch
from torch import nn


class RandomWeights:
    """Deterministic: a part has the same weights in every build. No parameter is left at its neutral 0 or 1."""

    random = True

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def fill(self, module: nn.Module, part: str) -> None:
        generator = torch.Generator().manual_seed(self._seed + sum(part.encode()))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith("rope.freqs"):
                    continue  # AnyUp's frequencies: the constructor's are the official ones
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1:
                    fan_in = parameter[0].numel()
                    parameter.copy_(noise * fan_in**-0.5)
                elif name.endswith("gamma"):
                    parameter.copy_(0.2 + 0.1 * noise)
                elif name.endswith("weight"):
                    parameter.copy_(1 + 0.1 * noise)
                else:
                    parameter.copy_(0.1 * noise)
        module.requires_grad_(False)
        module.eval()

    def checksums(self) -> dict[str, str]:
        return {}
