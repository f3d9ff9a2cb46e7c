"""dino.txt (`dinov3.eval.text`): vision head and text encoder, MODEL_SPEC section (b)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models.attention import attention, merge_heads, split_heads
from export.models.backbone import (
    LAYER_NORM_EPS,
    DinoVisionTransformer,
    Mlp,
    SelfAttentionBlock,
    SwiGlu,
    swiglu_hidden,
)


class VisionHead(nn.Module):
    """Two more blocks on the backbone's tokens, storage tokens included, without position encoding."""

    def __init__(self, *, embed_dim: int, num_heads: int, num_blocks: int = 2, swiglu_align: int = 64) -> None:
        super().__init__()
        hidden = swiglu_hidden(embed_dim, 4.0, swiglu_align)
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(embed_dim, num_heads, SwiGlu(embed_dim, hidden), qkv_bias=False)
            for _ in range(num_blocks)
        )
        self.ln_final = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) final-norm tokens [class, storage..., patches] -> (B, N, D)."""
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.ln_final(tokens)
        return tokens


class PatchFeatures(nn.Module):
    """Backbone and vision head as one stage: the patch tokens that are aligned with text."""

    def __init__(self, backbone: DinoVisionTransformer, head: VisionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, image: Tensor, rope_sin: Tensor, rope_cos: Tensor) -> Tensor:
        """image (B, 3, H, W), tables (N, head_dim) -> features (B, H*W/256, D), not normalised."""
        tokens = self.head(self.backbone(image, rope_sin, rope_cos))
        return tokens[:, self.backbone.prefix_tokens :]  # type: ignore[no-any-return]


class CausalAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        x = self.proj(merge_heads(attention(q, k, v, mask)))
        return x


class CausalBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, ffn_ratio: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = CausalAttention(dim, num_heads)
        self.ffn_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.feed_forward = Mlp(dim, int(dim * ffn_ratio))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        x = x + self.feed_forward(self.ffn_norm(x))
        return x


class TextTransformer(nn.Module):
    """Token ids -> hidden tokens before the final norm. Causal: padding after the end token has no effect."""

    causal_mask: Tensor

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        num_heads: int,
        num_layers: int,
        context_length: int,
        ffn_ratio: float,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.positional_embedding = nn.Parameter(torch.zeros(context_length, dim))
        self.blocks = nn.ModuleList(CausalBlock(dim, num_heads, ffn_ratio) for _ in range(num_layers))
        self.ln_final = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        # Finite, so that it survives half precision: exp(-1e4) is 0 there too.
        mask = torch.full((context_length, context_length), -1e4).triu(1)
        self.register_buffer("causal_mask", mask, persistent=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        x: Tensor = self.token_embedding(token_ids) + self.positional_embedding
        for block in self.blocks:
            x = block(x, self.causal_mask)
        return x


class TextProjection(nn.Module):
    def __init__(self, dim: int, embed_dim: int) -> None:
        super().__init__()
        self.linear_projection = nn.Linear(dim, embed_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear_projection(x)
        return x


class TextEncoder(nn.Module):
    """Prompts to text embeddings, split into the global and the local (patch-aligned) half."""

    def __init__(
        self,
        *,
        vocab_size: int = 49408,
        dim: int = 1280,
        num_heads: int = 20,
        num_layers: int = 24,
        embed_dim: int = 2048,
        context_length: int = 77,
        ffn_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.backbone = TextTransformer(vocab_size, dim, num_heads, num_layers, context_length, ffn_ratio)
        self.head = TextProjection(dim, embed_dim)

    def features(self, token_ids: Tensor) -> Tensor:
        """(K, context_length) int64 -> (K, embed_dim), pooled at the first occurrence of the largest id."""
        hidden = self.backbone(token_ids)
        # int32: engines have no ArgMax over int64. Pool first: the norm and the projection act per token.
        end = token_ids.to(torch.int32).argmax(dim=-1)
        last = hidden.take_along_dim(end[:, None, None], dim=1)[:, 0]
        pooled: Tensor = self.head(self.backbone.ln_final(last))
        return pooled

    def forward(self, token_ids: Tensor) -> Tensor:
        """(K, context_length) int64 -> (K, 2, embed_dim/2): global, then local half, each of unit norm."""
        return F.normalize(self.features(token_ids).reshape(token_ids.shape[0], 2, -1), dim=-1)
