"""AnyUp (`anyup.model.AnyUp`): image-guided resampling of any backbone's features, MODEL_SPEC section (c)."""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models.anyup_tables import AveragePool, Rope, Size, WindowMask
from runtime.errors import InputError

RMS_NORM_EPS = 1.1920929e-07  # officially the eps of the dtype: of fp32 here, also when the graph runs in fp16
RESPONSES_AT_ONCE = 14_000_000  # of the LFU, 56 MB: eight filters on 1024x40x40, of 839 MB for all 128
MANY_QUERIES = 16384
QUERIES_AT_ONCE = 8192  # where there are more than that; 210 MB of scores for four heads and 1600 keys


class ResBlock(nn.Module):
    """x + conv(silu(GN(conv(silu(GN(x)))))) with 1x1 convolutions, on (B, C, H, W)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(8, in_dim),
            nn.SiLU(),
            nn.Conv2d(in_dim, dim, 1, bias=False),
            nn.GroupNorm(8, dim),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 1, bias=False),
        )
        self.shortcut = nn.Identity() if in_dim == dim else nn.Conv2d(in_dim, dim, 1, bias=False)

    def forward(self, x: Tensor, pool: AveragePool | None = None) -> Tensor:
        """With `pool`, its result pooled: shortcut and last convolution are linear in each position, so they
        follow the average exactly, on a 256th of the positions at 640 -> 40."""
        hidden = x
        for layer in list(self.block)[:-1]:
            hidden = layer(hidden)
        if pool is not None:
            x, hidden = pool(x), pool(hidden)
        result: Tensor = self.shortcut(x) + self.block[-1](hidden)
        return result


class Encoder(nn.ModuleList):
    """A first layer and two residual blocks."""

    def __init__(self, first: nn.Module, in_dim: int, dim: int) -> None:
        super().__init__([first, ResBlock(in_dim, dim), ResBlock(dim, dim)])

    def forward(self, x: Tensor, pool: AveragePool | None = None) -> Tensor:
        result: Tensor = self[2](self[1](self[0](x)), pool)
        return result


class LearnedFeatureUnification(nn.Module):
    """Features of any channel count -> `filters` channels, through filters shared by all of them.

    Every channel meets every filter; a softmax over one axis, a mean over the other. Officially the
    (channel, filter) pairs are viewed, not transposed, as (filters, channels): the softmax runs over what
    that view calls filters. The released weights were trained so, and so it is here.

    Its output is nearly constant and goes into a group norm, which enlarges a rounding error some thousand
    times: the division by the taps stays a division, and a half-precision graph keeps this part in fp32.
    """

    taps: Tensor

    def __init__(self, filters: int, kernel_size: int, feature_size: Size) -> None:
        super().__init__()
        self.padding = kernel_size // 2
        self.basis = nn.Parameter(torch.randn(filters, 1, kernel_size, kernel_size))
        kernel = torch.ones(1, 1, kernel_size, kernel_size)
        taps = F.conv2d(torch.ones(1, 1, *feature_size), kernel, padding=self.padding)
        self.register_buffer("taps", taps, persistent=False)

    def responses(self, features: Tensor, first: int, end: int) -> Tensor:
        """Mean over the taps inside the image, every channel with filters first to end: -> (B*C, n, h, w)."""
        channels = features.flatten(0, 1).unsqueeze(1)
        return F.conv2d(channels, self.basis[first:end], padding=self.padding) / self.taps

    def literal(self, features: Tensor) -> Tensor:
        """All pairs at once, as officially: for channel counts that are no multiple of the filters."""
        batch, channels, height, width = features.shape
        filters = self.basis.shape[0]
        responses = self.responses(features, 0, filters)
        return responses.reshape(batch, filters, channels, height, width).softmax(dim=1).mean(dim=2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, filters, h, w).

        With C = m * filters the official view groups channels m by m, so the softmax runs over groups, apart
        for each filter: filters can be summed block by block. (Channels cannot.)
        """
        batch, channels, height, width = features.shape
        filters = self.basis.shape[0]
        if channels % filters:
            return self.literal(features)
        block = max(1, RESPONSES_AT_ONCE // features.numel())
        sums: list[Tensor] = []
        for first in range(0, filters, block):
            responses = self.responses(features, first, min(first + block, filters))
            groups = responses.reshape(batch, filters, -1, height, width)
            sums.append(groups.softmax(dim=1).sum(dim=2))
        return reduce(torch.add, sums) / channels


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + RMS_NORM_EPS) * self.weight


class QueryKeyProjection(nn.Module):
    """The part of `nn.MultiheadAttention` that has an effect: officially only its weights are used."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.zeros(2 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(2 * dim))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, D), (B, K, D) -> scaled queries (B, heads, Q, D/heads), keys (B, heads, D/heads, K)."""
        dim = q.shape[-1]
        q = F.linear(q, self.in_proj_weight[:dim], self.in_proj_bias[:dim])
        k = F.linear(k, self.in_proj_weight[dim:], self.in_proj_bias[dim:])
        head_dim = dim // self.num_heads
        q = (q * head_dim**-0.5).reshape(*q.shape[:2], self.num_heads, head_dim).transpose(1, 2)
        return q, k.reshape(*k.shape[:2], self.num_heads, head_dim).permute(0, 2, 3, 1)


class CrossAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_q = RmsNorm(dim)
        self.norm_k = RmsNorm(dim)
        self.attention = QueryKeyProjection(dim, num_heads)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        heads: tuple[Tensor, Tensor] = self.attention(self.norm_q(q), self.norm_k(k))
        return heads


class CrossDecode(nn.Module):
    """Every output is a weighted mean of the raw features in its window; the heads' weights are averaged.

    Args:
        rows_at_once: output rows attended together.
        mask: None lets every query see every key.
    """

    def __init__(self, dim: int, num_heads: int, rows_at_once: int, mask: WindowMask | None) -> None:
        super().__init__()
        self.rows_at_once = rows_at_once
        self.mask = mask
        self.conv2d = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.cross_attn = CrossAttention(dim, num_heads)

    def forward(self, q: Tensor, k: Tensor, features: Tensor) -> Tensor:
        """(B, D, H, W), (B, D, h, w), (B, C, h, w) -> (B, C, H, W)."""
        height, width = q.shape[-2:]
        queries, keys = self.cross_attn(self.conv2d(q).flatten(2).transpose(1, 2), k.flatten(2).transpose(1, 2))
        values = features.flatten(2).transpose(1, 2)
        parts: list[Tensor] = []
        for first in range(0, height, self.rows_at_once):
            end = min(first + self.rows_at_once, height)
            scores = queries[:, :, first * width : end * width] @ keys
            if self.mask is not None:
                scores = scores + self.mask(first, end)
            parts.append(scores.softmax(dim=-1).mean(dim=1) @ values)
        output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return output.transpose(1, 2).reshape(*features.shape[:2], height, width)


class AnyUp(nn.Module):
    """Official keys, for fixed sizes.

    Args:
        image_size, feature_size, output_size: (height, width), or the side of a square. The output size is
            the image's by default; equal to the features' it refines them without upsampling.
        lfu_dim: filters of the LFU; `qk_dim` by default.
        window_ratio: half the window's side as a share of the image's; 0 or less lets queries see all keys.
        query_chunk: attends about so many queries at a time, in whole rows; the result does not change.
            By default all together up to 16384, 8192 otherwise.
    """

    def __init__(
        self,
        *,
        image_size: Size | int,
        feature_size: Size | int,
        output_size: Size | int | None = None,
        qk_dim: int = 128,
        num_heads: int = 4,
        window_ratio: float = 0.1,
        kernel_size: int = 1,
        kernel_size_lfu: int = 5,
        lfu_dim: int | None = None,
        query_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if qk_dim % num_heads or qk_dim % 8:
            raise InputError(f"AnyUp qk_dim {qk_dim} is not a multiple of num_heads {num_heads} and of 8")
        self.image_size = pair(image_size)
        self.feature_size = pair(feature_size)
        self.output_size = self.image_size if output_size is None else pair(output_size)
        height, width = self.output_size
        if query_chunk is None:
            query_chunk = QUERIES_AT_ONCE if height * width > MANY_QUERIES else height * width
        mask = WindowMask(self.output_size, self.feature_size, window_ratio) if window_ratio > 0 else None

        self.image_encoder = encoder(3, qk_dim, kernel_size)
        self.query_encoder = encoder(qk_dim, qk_dim, 1)
        self.key_encoder = encoder(qk_dim, qk_dim, 1)
        filters = qk_dim if lfu_dim is None else lfu_dim
        unification = LearnedFeatureUnification(filters, kernel_size_lfu, self.feature_size)
        self.key_features_encoder = Encoder(unification, filters, qk_dim)
        self.aggregation = encoder(2 * qk_dim, qk_dim, 3)
        self.cross_decode = CrossDecode(qk_dim, num_heads, max(1, query_chunk // width), mask)
        self.rope = Rope(qk_dim, self.image_size)
        self.query_pool = AveragePool(self.image_size, self.output_size)
        self.key_pool = AveragePool(self.image_size, self.feature_size)

    def prepare_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leaves out the value and output projections, which officially affect nothing."""
        attention = "cross_decode.cross_attn.attention."
        unused = (f"{attention}out_proj.weight", f"{attention}out_proj.bias")
        prepared = {key: value for key, value in state.items() if key not in unused}
        for key in (f"{attention}in_proj_weight", f"{attention}in_proj_bias"):
            used = self.get_parameter(key).shape[0]
            if key in prepared and 2 * prepared[key].shape[0] == 3 * used:
                prepared[key] = prepared[key][:used]
        return prepared

    def encode_image(self, image: Tensor) -> Tensor:
        """Normalised (B, 3, Hi, Wi) -> (B, qk_dim, Hi, Wi), with rotary position."""
        encoded: Tensor = self.rope(self.image_encoder(image))
        return encoded

    def pooled_queries(self, encoded: Tensor) -> Tensor:
        """Encoded image -> (B, qk_dim, H, W)."""
        pooled: Tensor = self.query_encoder(encoded, self.query_pool)
        return pooled

    def pooled_keys(self, encoded: Tensor) -> Tensor:
        """Encoded image -> (B, qk_dim, h, w)."""
        pooled: Tensor = self.key_encoder(encoded, self.key_pool)
        return pooled

    def key_features(self, features: Tensor) -> Tensor:
        """Raw features (B, C, h, w) -> (B, qk_dim, h, w)."""
        encoded: Tensor = self.key_features_encoder(F.normalize(features, dim=1))
        return encoded

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        """Normalised image (B, 3, Hi, Wi), features (B, C, h, w) -> (B, C, H, W)."""
        given = (tuple(image.shape[-2:]), tuple(features.shape[-2:]))
        if given != (self.image_size, self.feature_size):
            raise InputError(
                f"AnyUp is built for images {self.image_size} and features {self.feature_size}, "
                f"got {given[0]} and {given[1]}"
            )
        encoded = self.encode_image(image)
        keys = self.aggregation(torch.cat([self.pooled_keys(encoded), self.key_features(features)], dim=1))
        output: Tensor = self.cross_decode(self.pooled_queries(encoded), keys, features)
        return output


def encoder(in_dim: int, dim: int, kernel_size: int) -> Encoder:
    """Officially padded by reflection; a 1x1 kernel needs none, and must not export a Pad node."""
    padding = kernel_size // 2
    mode: Literal["reflect", "zeros"] = "reflect" if padding else "zeros"
    return Encoder(nn.Conv2d(in_dim, dim, kernel_size, padding=padding, padding_mode=mode, bias=False), dim, dim)


def pair(size: Size | int) -> Size:
    return (size, size) if isinstance(size, int) else size
