"""Spatial refinement: guided Swin attention inside each class map (CAT-Seg `SwinTransformerBlockWrapper`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.models.attention import GuidedProjection, attention
from export.models.backbone import Mlp


class GuidedWindowAttention(GuidedProjection):
    def __init__(self, dim: int, guidance_dim: int, num_heads: int) -> None:
        super().__init__(dim, guidance_dim)
        self.num_heads = num_heads
        self.proj = nn.Linear(dim, dim)


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP on a fixed grid; `shift` > 0 moves the windows by half their size."""

    attn_mask: Tensor | None

    def __init__(
        self, dim: int, guidance_dim: int, num_heads: int, grid: tuple[int, int], window: int, shift: int
    ) -> None:
        super().__init__()
        self.grid, self.window, self.shift = grid, window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GuidedWindowAttention(dim, guidance_dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.register_buffer("attn_mask", shifted_window_mask(grid, window, shift) if shift else None, persistent=False)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (K, H*W, D), guidance (1, H*W, Dg) -> (K, H*W, D)."""
        qkv = self.attn.project(self.norm1(x)) + self.attn.guidance_offset(guidance)
        x = x + self.attn.proj(self.window_attention(qkv))
        x = x + self.mlp(self.norm2(x))
        return x

    def window_attention(self, qkv: Tensor) -> Tensor:
        (height, width), window, heads = self.grid, self.window, self.attn.num_heads
        rows, columns, dim = height // window, width // window, qkv.shape[-1] // 3
        maps = qkv.reshape(-1, height, width, 3 * dim)
        if self.shift:
            maps = maps.roll((-self.shift, -self.shift), dims=(1, 2))
        maps = maps.reshape(-1, rows, window, columns, window, 3, heads, dim // heads)
        windows = maps.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(2, 3)  # 3, K, windows, heads, w*w
        x = attention(windows[0], windows[1], windows[2], self.attn_mask)
        x = x.reshape(-1, rows, columns, heads, window, window, dim // heads)
        x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, height, width, dim)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x.flatten(1, 2)


class SwinLayer(nn.Module):
    """A plain and a shifted window block under one normalised guidance map."""

    def __init__(self, dim: int, guidance_dim: int, num_heads: int, grid: tuple[int, int], window_size: int) -> None:
        super().__init__()
        window, shift = (window_size, window_size // 2) if window_size < min(grid) else (min(grid), 0)
        if any(side % window for side in grid):
            raise ValueError(f"window_size {window} does not divide the feature grid {grid[0]}x{grid[1]}")
        self.grid = grid
        self.block_1 = SwinBlock(dim, guidance_dim, num_heads, grid, window, 0)
        self.block_2 = SwinBlock(dim, guidance_dim, num_heads, grid, window, shift)
        self.guidance_norm = nn.LayerNorm(guidance_dim)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (K, D, H, W), guidance (1, Dg, H, W) -> (K, D, H, W)."""
        guidance = self.guidance_norm(guidance.flatten(2).transpose(1, 2))
        tokens: Tensor = self.block_2(self.block_1(x.flatten(2).transpose(1, 2), guidance), guidance)
        return tokens.transpose(1, 2).reshape(x.shape)


def shifted_window_mask(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """(windows, 1, w*w, w*w): -100 between positions that the shift brought together from opposite borders."""

    def region(size: int) -> Tensor:
        position = torch.arange(size)
        return (position >= size - window).long() + (position >= size - shift).long()

    height, width = grid
    regions = region(height)[:, None] * 3 + region(width)
    regions = regions.reshape(height // window, window, width // window, window)
    regions = regions.permute(0, 2, 1, 3).reshape(-1, window * window)
    different = regions[:, :, None] != regions[:, None, :]
    return (different.float() * -100.0)[:, None]
