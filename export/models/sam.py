"""SAM image encoder (`segment_anything.modeling.image_encoder.ImageEncoderViT`) and the guidance maps made
from it, MODEL_SPEC sections (d) and (f)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.checkpoints import sub_state
from export.models.attention import merge_heads, split_heads
from runtime.errors import InputError

PATCH_SIZE = 16
Size = tuple[int, int]


class Attention(nn.Module):
    """Self-attention over a grid of fixed size, with decomposed relative position.

    Official logits: scale * q.k + q.Rh[y, y'] + q.Rw[x, x'], the last two with unscaled q. They are one
    product of [scale * q, q.Rh, q.Rw] with [k, onehot(y'), onehot(x')], so no (heads, N, N) bias is ever
    written and the attention stays MatMul, Softmax, MatMul.
    """

    key_position: Tensor

    def __init__(self, embed_dim: int, num_heads: int, grid: Size) -> None:
        super().__init__()
        height, width = grid
        head_dim = embed_dim // num_heads
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(height, head_dim, height))  # made by `relative_table`
        self.rel_pos_w = nn.Parameter(torch.zeros(width, head_dim, width))
        rows = torch.eye(height).repeat_interleave(width, dim=0)
        columns = torch.eye(width).repeat(height, 1)
        self.register_buffer("key_position", torch.cat([rows, columns], dim=1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, height, width, D) -> same."""
        batch, height, width, _ = x.shape
        q, k, v = split_heads(self.qkv(x.flatten(1, 2)), self.num_heads)
        grid = q.reshape(batch, self.num_heads, height, width, -1)
        toward_rows = grid @ self.rel_pos_h
        toward_columns = (grid.transpose(2, 3) @ self.rel_pos_w).transpose(2, 3)
        q = torch.cat([q * self.scale, toward_rows.flatten(2, 3), toward_columns.flatten(2, 3)], dim=-1)
        k = torch.cat([k, self.key_position.expand(batch, self.num_heads, -1, -1)], dim=-1)
        x = merge_heads((q @ k.transpose(-2, -1)).softmax(dim=-1) @ v)
        projected: Tensor = self.proj(x).reshape(batch, height, width, -1)
        return projected


def relative_table(rel_pos: Tensor, size: int) -> Tensor:
    """Official (L, head_dim) -> (size, head_dim, size): [y, :, y'] belongs to query y and key y'.

    A table of another length than 2 * size - 1 is interpolated, as the official `get_rel_pos` does.
    """
    length = 2 * size - 1
    if rel_pos.shape[0] != length:
        rel_pos = F.interpolate(rel_pos.T[None], size=length, mode="linear", align_corners=False)[0].T
    position = torch.arange(size)
    return rel_pos[position[:, None] - position + size - 1].transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embed_dim, hidden)
        self.lin2 = nn.Linear(hidden, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.lin2(F.gelu(self.lin1(x)))
        return output


class Block(nn.Module):
    """Pre-norm block on (B, h, w, D). `window` 0 attends globally."""

    def __init__(
        self, embed_dim: int, num_heads: int, grid: Size, window: int, mlp_ratio: float, norm_eps: float
    ) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = Attention(embed_dim, num_heads, (window, window) if window else grid)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.norm1(x)
        if self.window:
            attended = merge_windows(self.attn(split_windows(attended, self.window)), x.shape)
        else:
            attended = self.attn(attended)
        x = x + attended
        expanded: Tensor = self.mlp(self.norm2(x))
        return x + expanded


def split_windows(x: Tensor, window: int) -> Tensor:
    """(B, h, w, D) -> (B * windows, window, window, D), zero-padded right and bottom.

    The padding is not masked: after the qkv projection it carries the biases and is attended to.
    """
    batch, height, width, dim = x.shape
    rows, columns = -(-height // window), -(-width // window)
    if height % window or width % window:
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    x = x.reshape(batch, rows, window, columns, window, dim).transpose(2, 3)
    return x.reshape(-1, window, window, dim)


def merge_windows(windows: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `split_windows`: (B * windows, window, window, D) -> `shape` (B, h, w, D)."""
    batch, height, width, dim = shape
    window = windows.shape[1]
    rows, columns = -(-height // window), -(-width // window)
    x = windows.reshape(batch, rows, columns, window, window, dim).transpose(2, 3)
    x = x.reshape(batch, rows * window, columns * window, dim)
    if height % window or width % window:
        x = x[:, :height, :width]
    return x


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of (B, C, h, w), as one LayerNormalization node instead of a mean and a power."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SamImageEncoder(nn.Module):
    """Official keys, for any image size that is a multiple of 16.

    Args:
        image_size: height and width of the image, or the side of a square one.
        pretrained_size: the side the checkpoint was trained at; its `pos_embed` has that grid.
        global_attn_indexes: blocks that attend globally; the others attend within windows.
        window_size: side of a window in tokens; 0 makes every block global.
        taps: zero-based blocks whose outputs are returned too, in this order.
    """

    def __init__(
        self,
        *,
        image_size: Size | int,
        pretrained_size: int = 1024,
        embed_dim: int,
        depth: int,
        num_heads: int,
        global_attn_indexes: Sequence[int],
        window_size: int = 14,
        out_chans: int = 256,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        taps: Sequence[int] = (),
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        for side in (height, width, pretrained_size):
            if side <= 0 or side % PATCH_SIZE:
                raise InputError(f"SAM image size {side} is not a positive multiple of {PATCH_SIZE}")
        if embed_dim % num_heads:
            raise InputError(f"SAM embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        if unknown := [index for index in (*taps, *global_attn_indexes) if not 0 <= index < depth]:
            raise InputError(f"SAM has blocks 0 to {depth - 1}; taps or global_attn_indexes name {unknown}")
        grid = (height // PATCH_SIZE, width // PATCH_SIZE)
        self.image_size = (height, width)
        self.pretrained_grid = pretrained_size // PATCH_SIZE
        self.taps = tuple(taps)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, embed_dim, PATCH_SIZE, PATCH_SIZE)})
        self.pos_embed = nn.Parameter(torch.zeros(1, *grid, embed_dim))
        windows = [0 if i in global_attn_indexes else window_size for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, grid, window, mlp_ratio, norm_eps) for window in windows
        )
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, 1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def prepare_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fits the position tables to this grid. Wrongly shaped tensors pass through, to be reported."""
        prepared = dict(state)
        _, height, width, embed_dim = self.pos_embed.shape
        pos_embed = prepared.get("pos_embed")
        official = (1, self.pretrained_grid, self.pretrained_grid, embed_dim)
        if pos_embed is not None and pos_embed.shape == official and official[1:3] != (height, width):
            channels_first = pos_embed.permute(0, 3, 1, 2)
            resized = F.interpolate(channels_first, (height, width), mode="bicubic", align_corners=False)
            prepared["pos_embed"] = resized.permute(0, 2, 3, 1)
        for name, parameter in self.named_parameters():
            table = prepared.get(name) if name.endswith((".rel_pos_h", ".rel_pos_w")) else None
            if table is not None and table.ndim == 2 and table.shape[1] == parameter.shape[1]:
                prepared[name] = relative_table(table, parameter.shape[0])
        return prepared

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Normalised (B, 3, H, W) -> neck (B, out_chans, h, w), then each tap (B, D, h, w).

        A tap is a block's output after both residuals, windows merged, not normalised.
        """
        if tuple(image.shape[-2:]) != self.image_size:
            raise InputError(f"SAM encoder is built for images of {self.image_size}, got {tuple(image.shape[-2:])}")
        x = self.patch_embed["proj"](image).permute(0, 2, 3, 1) + self.pos_embed
        outputs: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                outputs[i] = x.permute(0, 3, 1, 2)
        neck: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return (neck, *(outputs[i] for i in self.taps))


class SamGuidance(nn.Module):
    """The spatial prior (`spe.*`): SAM's neck at 1/16, its lower tap at 1/8 and its higher tap at 1/4.

    Args:
        grid: side G of the head's feature grid; the maps are resized to G, 2G and 4G if SAM's differs.
        guidance_dims: channels of the 1/8 and the 1/4 map.
        image_encoder: arguments of `SamImageEncoder`, with exactly two taps.
    """

    def __init__(self, *, grid: int, guidance_dims: tuple[int, int], **image_encoder: Any) -> None:
        super().__init__()
        taps = sorted(image_encoder.pop("taps", ()))
        if len(taps) != 2:
            raise InputError(f"SAM guidance is made from two taps, got {taps}")
        embed_dim = image_encoder["embed_dim"]
        self.grid = grid
        self.image_encoder = SamImageEncoder(taps=taps, **image_encoder)
        self.upsample1 = nn.ConvTranspose2d(embed_dim, guidance_dims[0], 2, 2)
        self.upsample2 = nn.ConvTranspose2d(embed_dim, guidance_dims[1], 4, 4)

    def prepare_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's own preparation; the other two parts of a whole SAM file are dropped."""
        harmless = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
        prepared = {key: value for key, value in state.items() if not key.startswith(harmless)}
        encoder = self.image_encoder.prepare_state(sub_state(state, "image_encoder."))
        return prepared | {f"image_encoder.{key}": value for key, value in encoder.items()}

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised (B, 3, H, W) -> (B, out_chans, G, G), (B, dims[0], 2G, 2G), (B, dims[1], 4G, 4G)."""
        neck, low, high = self.image_encoder(image)
        return (
            resized(neck, self.grid),
            resized(self.upsample1(low), 2 * self.grid),
            resized(self.upsample2(high), 4 * self.grid),
        )


def resized(x: Tensor, side: int) -> Tensor:
    """(B, C, h, w) -> (B, C, side, side), bilinear; nothing happens at the right size."""
    if x.shape[-2:] == (side, side):
        return x
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
