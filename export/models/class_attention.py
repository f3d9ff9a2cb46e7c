"""Class refinement: attention over the class axis at each position (CAT-Seg `ClassTransformerLayer`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models.attention import GuidedProjection


@dataclass(frozen=True)
class PaddingClasses:
    """The identical classes that fill up to `pad_len`: one token with a weight; their outputs are dropped."""

    token: Tensor  # (1, 1, D), normed like the others
    guidance: Tensor  # (1, Dg)
    count: Tensor  # ()


class Heads(NamedTuple):
    """Each (L, heads, K, head_dim)."""

    q: Tensor
    k: Tensor
    v: Tensor


class ClassAttention(GuidedProjection):
    """Attention over classes at each of L positions. There is no output projection."""

    def __init__(self, dim: int, guidance_dim: int, num_heads: int, kind: str) -> None:
        super().__init__(dim, guidance_dim)
        self.num_heads = num_heads
        self.attend = {"linear": linear_attention, "full": full_attention}[kind]

    def forward(self, x: Tensor, guidance: Tensor, present: Tensor, padding: PaddingClasses | None) -> Tensor:
        """x (K, L, D), guidance (K, Dg), present (K,) of 1 and 0 -> (K, L, D)."""
        heads = self.heads(x, guidance)
        if padding is None:
            attended = self.attend(heads, present, None, None)
        else:
            attended = self.attend(heads, present, self.heads(padding.token, padding.guidance), padding.count)
        return attended.permute(2, 0, 1, 3).flatten(2)

    def heads(self, x: Tensor, guidance: Tensor) -> Heads:
        qkv = self.project(x) + self.guidance_offset(guidance)[:, None]
        qkv = qkv.reshape(*qkv.shape[:2], 3, self.num_heads, -1).permute(2, 1, 3, 0, 4)
        return Heads(qkv[0], qkv[1], qkv[2])


def linear_attention(x: Heads, present: Tensor, pad: Heads | None, pad_count: Tensor | None) -> Tensor:
    """Feature maps elu+1. Values are divided by the number of classes and multiplied back: fp16 has no room."""
    q, k = F.elu(x.q) + 1, (F.elu(x.k) + 1) * present[:, None]
    classes = present.sum()
    key_sum = k.sum(dim=2, keepdim=True)
    if pad is None or pad_count is None:
        key_values = k.transpose(-2, -1) @ (x.v / classes)
    else:
        classes = classes + pad_count
        pad_k = (F.elu(pad.k) + 1) * pad_count
        key_sum = key_sum + pad_k
        key_values = k.transpose(-2, -1) @ (x.v / classes) + pad_k.transpose(-2, -1) @ (pad.v / classes)
    return (q @ key_values) / ((q * key_sum).sum(dim=-1, keepdim=True) + 1e-6) * classes


def full_attention(x: Heads, present: Tensor, pad: Heads | None, pad_count: Tensor | None) -> Tensor:
    """Softmax over classes; n equal padding keys are one key whose logit is higher by log(n)."""
    q = x.q * x.q.shape[-1] ** -0.5
    scores = q @ x.k.transpose(-2, -1) + present.log().clamp(min=-1e4)
    if pad is None or pad_count is None:
        attended: Tensor = scores.softmax(dim=-1) @ x.v
        return attended
    pad_scores = q @ pad.k.transpose(-2, -1) + pad_count.log().clamp(min=-1e4)
    weights = torch.cat([pad_scores, scores], dim=-1).softmax(dim=-1)
    attended = weights[..., 1:] @ x.v + weights[..., :1] * pad.v
    return attended


class ClassLayer(nn.Module):
    """Attention over classes on pooled maps, brought back to full resolution and added."""

    def __init__(
        self,
        dim: int,
        guidance_dim: int,
        num_heads: int,
        pooling: tuple[int, int],
        kind: str,
        pad_len: int,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.pad_len = pad_len
        if pad_len:
            self.padding_tokens = nn.Parameter(torch.zeros(1, 1, dim))
            self.padding_guidance = nn.Parameter(torch.zeros(1, 1, guidance_dim))
        self.attention = ClassAttention(dim, guidance_dim, num_heads, kind)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.MLP = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, guidance: Tensor, present: Tensor) -> Tensor:
        """x (K, D, H, W), guidance (K, Dg), present (K,) -> (K, D, H, W)."""
        pools = self.pooling != (1, 1)
        pooled = F.avg_pool2d(x, self.pooling) if pools else x
        grid = pooled.shape[-2:]
        tokens: Tensor = pooled.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm1(tokens), guidance, present, self.padding(present))
        tokens = tokens + self.MLP(self.norm2(tokens))
        refined: Tensor = tokens.transpose(1, 2).reshape(*x.shape[:2], *grid)
        if pools:
            refined = F.interpolate(refined, size=x.shape[-2:], mode="bilinear", align_corners=True)
        return x + refined

    def padding(self, present: Tensor) -> PaddingClasses | None:
        if not self.pad_len:
            return None
        count = (self.pad_len - present.sum()).clamp(min=0)
        return PaddingClasses(self.norm1(self.padding_tokens), self.padding_guidance[0], count)
