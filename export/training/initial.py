"""Starting points that save a small model hours."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from export.models.anyup import AnyUp
from export.models.sam import relative_table


@torch.no_grad()
def start_patch_embedding(projection: nn.Conv2d, images: Tensor) -> None:
    """Makes every output a cosine of the patch in brightness or one of two colour differences, whitened on `images`.

    The lowest frequencies come first, half of the outputs for brightness: a patch then survives the projection
    nearly whole, which random filters take long to learn.
    """
    outputs, _, size, _ = projection.weight.shape
    position = (torch.arange(size) + 0.5) * math.pi / size
    cosines = torch.cos(torch.arange(size)[:, None] * position)
    order = sorted(((u, v) for u in range(size) for v in range(size)), key=lambda f: (f[0] ** 2 + f[1] ** 2, f))
    colors = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    shares = (outputs // 2, outputs // 4, outputs - outputs // 2 - outputs // 4)
    filters = [
        color[:, None, None] * torch.outer(cosines[u], cosines[v])
        for color, share in zip(colors, shares, strict=True)
        for u, v in order[:share]
    ]
    projection.weight.copy_(torch.stack(filters))
    assert projection.bias is not None
    projection.bias.zero_()
    responses = projection(images).transpose(0, 1).flatten(1)
    scale = 0.5 / (responses.std(dim=1) + 0.05 * responses.std())
    projection.weight.mul_(scale[:, None, None, None])
    projection.bias.copy_(-responses.mean(dim=1) * scale)


@torch.no_grad()
def start_transformer(module: nn.Module, generator: torch.Generator) -> None:
    """Small normal weights, zero biases, as vision transformers start."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
        elif name.endswith(("cls_token", "storage_tokens", "pos_embed")):
            parameter.normal_(0, 0.02, generator=generator)
        elif name.endswith("bias"):
            parameter.zero_()


@torch.no_grad()
def start_anyup(anyup: AnyUp, generator: torch.Generator) -> None:
    """Queries and keys at zero would never leave it: the gradient of each is the other."""
    projections = anyup.cross_decode.cross_attn.attention.in_proj_weight
    projections.normal_(0, projections.shape[1] ** -0.5, generator=generator)


@torch.no_grad()
def fix_relative_positions(encoder: nn.Module, generator: torch.Generator) -> None:
    """Draws SAM's relative positions once and keeps them.

    They are stored expanded, one entry for each pair of rows: trained so, they would no longer be the official
    tables, which know distances only. The absolute positions learn what is needed.
    """
    for name, table in encoder.named_parameters():
        if name.endswith((".rel_pos_h", ".rel_pos_w")):
            size, head_dim, _ = table.shape
            table.copy_(relative_table(0.02 * torch.randn(2 * size - 1, head_dim, generator=generator), size))
            table.requires_grad_(False)
