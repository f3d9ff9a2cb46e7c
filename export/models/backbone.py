"""DINOv3 vision transformer (`dinov3.models.vision_transformer.DinoVisionTransformer`), MODEL_SPEC section (a)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models.attention import attention, merge_heads, split_heads
from runtime.errors import WeightsError

LAYER_NORM_EPS = 1e-5  # the released models use `layernormbf16`; the class default would be 1e-6


def swiglu_hidden(embed_dim: int, ratio: float, align: int) -> int:
    """Two thirds of the nominal width, rounded up to a multiple of `align`."""
    hidden = int(embed_dim * ratio * 2 / 3)
    return hidden + -hidden % align


class Mlp(nn.Module):
    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(F.gelu(self.fc1(x)))
        return x


class SwiGlu(nn.Module):
    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(embed_dim, hidden)
        self.w2 = nn.Linear(embed_dim, hidden)
        self.w3 = nn.Linear(hidden, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.w3(F.silu(self.w1(x)) * self.w2(x))
        return x


class LayerScale(nn.Module):
    """Kept as its own multiply: folded into the projection, gammas of 1e-5 would fall below fp16's range."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SelfAttention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        x = self.proj(merge_heads(attention(q, k, v)))
        return x


def rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotary embedding of (B, heads, N, head_dim) by tables (N, head_dim): dims j and j + head_dim/2 pair up."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class SelfAttentionBlock(nn.Module):
    """Pre-norm block with LayerScale on both branches; also the block of the dino.txt vision head."""

    def __init__(self, embed_dim: int, num_heads: int, ffn: nn.Module, qkv_bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(embed_dim, num_heads, qkv_bias)
        self.ls1 = LayerScale(embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.mlp = ffn
        self.ls2 = LayerScale(embed_dim)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope))
        x = x + self.ls2(self.mlp(self.norm2(x)))
        return x


class PatchEmbed(nn.Module):
    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class RopePeriods(nn.Module):
    """Holds the checkpoint's periods; the tables made from them are inputs of the graph (`runtime.rope`)."""

    periods: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponents = torch.arange(head_dim // 4, dtype=torch.float64) * 4 / head_dim
        self.register_buffer("periods", (100.0**exponents).to(torch.bfloat16).float())


class DinoVisionTransformer(nn.Module):
    """Image and rotary tables in, final-norm tokens [class, storage..., patches] out.

    Args:
        ffn: "mlp" (GELU) or "swiglu".
        ffn_align: SwiGLU only: the hidden width is rounded up to a multiple of it.
        untie_cls_and_patch_norms: A second final norm for class and storage tokens.
        mask_k_bias: The checkpoint carries `bias_mask`, which zeroes the k third of the qkv bias; folded at load.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        ffn: str = "mlp",
        ffn_ratio: float = 4.0,
        ffn_align: int = 8,
        qkv_bias: bool = True,
        mask_k_bias: bool = True,
        n_storage_tokens: int = 4,
        patch_size: int = 16,
        untie_cls_and_patch_norms: bool = False,
    ) -> None:
        super().__init__()
        self.prefix_tokens = 1 + n_storage_tokens
        self.patch_size = patch_size
        self.masked_k_bias = qkv_bias and mask_k_bias
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.storage_tokens = nn.Parameter(torch.zeros(1, n_storage_tokens, embed_dim))
        self.patch_embed = PatchEmbed(embed_dim, patch_size)
        self.rope_embed = RopePeriods(embed_dim // num_heads)

        def make_ffn() -> nn.Module:
            if ffn == "mlp":
                return Mlp(embed_dim, int(embed_dim * ffn_ratio))
            return SwiGlu(embed_dim, swiglu_hidden(embed_dim, ffn_ratio, ffn_align))

        self.blocks = nn.ModuleList(
            SelfAttentionBlock(embed_dim, num_heads, make_ffn(), qkv_bias) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.cls_norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS) if untie_cls_and_patch_norms else None

    def forward(self, image: Tensor, rope_sin: Tensor, rope_cos: Tensor) -> Tensor:
        """image (B, 3, H, W) normalised, tables (N, head_dim) -> tokens (B, N, D), N = prefix + H*W/256."""
        patches = self.patch_embed(image)
        batch = patches.shape[0]
        prefix = torch.cat([self.cls_token, self.storage_tokens], dim=1).expand(batch, -1, -1)
        x = torch.cat([prefix, patches], dim=1)
        for block in self.blocks:
            x = block(x, (rope_sin, rope_cos))
        return self.final_norm(x)

    def final_norm(self, x: Tensor) -> Tensor:
        if self.cls_norm is None:
            x = self.norm(x)
            return x
        prefix, patches = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :]
        return torch.cat([self.cls_norm(prefix), self.norm(patches)], dim=1)

    def prepare_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Folds the k-bias mask; drops what has no effect at inference (`mask_token`, `local_cls_norm`)."""
        dropped = ("mask_token", "local_cls_norm.")
        state = {key: value for key, value in state.items() if not key.startswith(dropped)}
        if self.masked_k_bias:
            for i in range(len(self.blocks)):
                name = f"blocks.{i}.attn.qkv.bias"
                if name in state:
                    state[name] = mask_k_third(state[name], state.pop(f"{name}_mask", None), name)
        return state


def mask_k_third(bias: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """Effective qkv bias. A freshly built official module holds a NaN mask: it stands for 1 | 0 | 1."""
    if mask is None:
        raise WeightsError(f"missing key {name}_mask: the file is not an official DINOv3 checkpoint")
    if mask.shape != bias.shape:
        raise WeightsError(f"wrong shape: {name}_mask is {tuple(mask.shape)}, expected {tuple(bias.shape)}")
    if mask.isnan().any():
        third = len(bias) // 3
        mask = torch.ones_like(bias)
        mask[third : 2 * third] = 0
    return bias * mask
