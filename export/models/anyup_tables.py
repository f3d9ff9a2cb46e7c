"""AnyUp's tables, baked for fixed sizes: window mask, pooling, rotary position. MODEL_SPEC section (c)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]
BLOCKED = -1e4  # finite, also in fp16 and when both axes block; exp() of it is exactly 0


def window(outputs: int, inputs: int, ratio: float) -> Tensor:
    """Bool (outputs, inputs), one axis of the window: True where the query may look.

    The official formula in the official precision: where `inputs * ratio` ends in .5, fp32 rounding decides
    which keys are in, and any rearrangement decides otherwise.
    """
    centre = (torch.arange(outputs, dtype=torch.float32) + 0.5) / outputs
    first = ((centre - ratio).clamp(0.0, 1.0) * inputs).floor()
    end = ((centre + ratio).clamp(0.0, 1.0) * inputs).ceil()
    position = torch.arange(inputs)
    return (position >= first[:, None]) & (position < end[:, None])


class WindowMask(nn.Module):
    """Additive mask of the queries of some output rows against all keys.

    Kept as its two axes: whole, it would be (H*W, h*w), 2.6 GB for 640x640 queries on 40x40 keys.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, outputs: Size, inputs: Size, ratio: float) -> None:
        super().__init__()
        rows, columns = (window(outputs[axis], inputs[axis], ratio) for axis in (0, 1))
        blocked_rows = (~rows * BLOCKED)[:, None, :, None]
        blocked_columns = (~columns * BLOCKED)[None, :, None, :]
        self.register_buffer("rows", blocked_rows, persistent=False)
        self.register_buffer("columns", blocked_columns, persistent=False)

    def forward(self, first: int, end: int) -> Tensor:
        """((end - first) * W, h*w) for output rows first to end: 0 where allowed, else <= -1e4."""
        return (self.rows[first:end] + self.columns).flatten(2).flatten(0, 1)


class AveragePool(nn.Module):
    """`F.adaptive_avg_pool2d` between two fixed sizes, in ops every engine has."""

    rows: Tensor
    columns: Tensor

    def __init__(self, source: Size, target: Size) -> None:
        super().__init__()
        self.kernel: Size | None = None
        if source[0] % target[0] == 0 and source[1] % target[1] == 0:
            self.kernel = (source[0] // target[0], source[1] // target[1])
        else:
            self.register_buffer("rows", pooling_matrix(source[0], target[0]), persistent=False)
            self.register_buffer("columns", pooling_matrix(source[1], target[1]).T, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *source) -> (B, C, *target)."""
        if self.kernel == (1, 1):
            return x
        if self.kernel:
            return F.avg_pool2d(x, self.kernel)
        return self.rows @ (x @ self.columns)


def pooling_matrix(source: int, target: int) -> Tensor:
    """(target, source): cell i averages positions floor(i*source/target) to ceil((i+1)*source/target)."""
    matrix = torch.zeros(target, source)
    for i in range(target):
        first, end = i * source // target, -(-(i + 1) * source // target)
        matrix[i, first:end] = 1 / (end - first)
    return matrix


class Rope(nn.Module):
    """AnyUp's rotary embedding of a whole image: x * cos(angle) + rotate_half(x) * sin(angle).

    angle = row * freqs[0] + column * freqs[1] differs between a channel and the one half the width away, so
    this is no rotation; it is copied literally. The sum is split by the addition theorems, hence the tables
    are (C, H, 1) and (C, 1, W): 1.3 MB for 128x640x640, where cos and sin of the angle would be 419 MB. They
    are multiplied into the data before they meet each other, or engines would fold them to full size again.

    The tables follow `freqs` when a state dict is loaded.
    """

    row_cos: Tensor
    row_sin: Tensor
    column_cos: Tensor
    column_sin: Tensor

    def __init__(self, channels: int, image_size: Size) -> None:
        super().__init__()
        self.image_size = image_size
        self.freqs = nn.Parameter(torch.zeros(2, channels))
        for name in ("row_cos", "row_sin", "column_cos", "column_sin"):
            self.register_buffer(name, None, persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _keys: module.bake())  # type: ignore[no-untyped-call]
        self.bake()

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """Of rows (H,) and columns (W,), both from 0 to 1 with the end points included."""
        height, width = self.image_size
        return torch.linspace(0, 1, height), torch.linspace(0, 1, width)

    def bake(self) -> None:
        rows, columns = (axis.double() for axis in self.coordinates())
        freqs = self.freqs.detach().double()
        row_angle = (freqs[0, :, None] * rows)[:, :, None]
        column_angle = (freqs[1, :, None] * columns)[:, None, :]
        self.row_cos, self.row_sin = row_angle.cos().float(), row_angle.sin().float()
        self.column_cos, self.column_sin = column_angle.cos().float(), column_angle.sin().float()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> same."""
        first, second = x.chunk(2, dim=1)
        turned = torch.cat([-second, first], dim=1)
        along = x * self.row_cos + turned * self.row_sin
        across = turned * self.row_cos - x * self.row_sin
        return along * self.column_cos + across * self.column_sin
