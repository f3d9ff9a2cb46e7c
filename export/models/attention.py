"""Scaled dot-product attention in the one form that engines fuse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + mask) v over (..., tokens, head_dim).

    In a graph it is MatMul, Softmax, MatMul with q alone scaled, once: torch's own export scales q and k by
    the square root, which breaks TensorRT's fused attention (TensorRT#4333). Eager torch uses its fused kernel.
    """
    if torch.compiler.is_exporting():
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores + mask
        attended: Tensor = scores.softmax(dim=-1) @ v
        return attended
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fused projection (B, N, 3*D) -> q, k, v, each (B, heads, N, D/heads)."""
    batch, tokens, width = qkv.shape
    heads = qkv.reshape(batch, tokens, 3, num_heads, width // (3 * num_heads)).permute(2, 0, 3, 1, 4)
    return heads[0], heads[1], heads[2]


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, head_dim) -> (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


class GuidedProjection(nn.Module):
    """Queries and keys of [x ; guidance], values of x alone (CAT-Seg), as one projection.

    W [x ; g] = W_x x + W_g g. Guidance is shared by all classes or by all positions, so its product is made
    once and broadcast. The weights are joined in the graph and folded to constants at export.
    """

    def __init__(self, dim: int, guidance_dim: int) -> None:
        super().__init__()
        self.q = nn.Linear(dim + guidance_dim, dim)
        self.k = nn.Linear(dim + guidance_dim, dim)
        self.v = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., 3*D), without the guidance part and the biases."""
        dim = x.shape[-1]
        return F.linear(x, torch.cat([self.q.weight[:, :dim], self.k.weight[:, :dim], self.v.weight]))

    def guidance_offset(self, guidance: Tensor) -> Tensor:
        """(..., Dg) -> (..., 3*D): what guidance and biases add; zero for the values but their bias."""
        dim = self.v.in_features
        weight = torch.cat([self.q.weight[:, dim:], self.k.weight[:, dim:]])
        return F.linear(guidance, F.pad(weight, (0, 0, 0, dim)), torch.cat([self.q.bias, self.k.bias, self.v.bias]))
