"""Phase two: AnyUp learns to sharpen features at the patch grid; the aligned backbone and text stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models.anyup import AnyUp
from export.training.alignment import OBJECT_WEIGHT, Alignment, weighted_cross_entropy
from export.training.vocabulary import Words


class EarlyRefinement(nn.Module):
    """AnyUp for crops of one size; its weights fit any size."""

    def __init__(self, anyup: AnyUp, grid: int) -> None:
        super().__init__()
        self.anyup = anyup
        self.grid = grid

    def forward(self, images: Tensor, patches: Tensor) -> Tensor:
        """images (B, 3, H, W), patch features (B, N, D) -> refined (B, N, D)."""
        maps = patches.transpose(1, 2).reshape(len(patches), -1, self.grid, self.grid)
        refined: Tensor = self.anyup(images, maps)
        return refined.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class EarlyLoss:
    """Refined features must name their patch at least as well as the raw ones."""

    alignment: Alignment
    words: Words

    def __call__(self, model: EarlyRefinement, images: Tensor, shares: Tensor) -> tuple[Tensor, dict[str, float]]:
        words = self.words
        shares = shares[..., words.train].to(images.device)
        with torch.no_grad():
            text = self.alignment.text_encoder(words.ids[: words.names])[:, 1]
            patches = self.alignment.raw_patches(images)
        weights = 1 + (OBJECT_WEIGHT - 1) * shares[..., words.surfaces :].sum(dim=-1)

        def loss_of(features: Tensor) -> Tensor:
            logits = F.normalize(features, dim=-1) @ text.T * self.alignment.logit_scale.detach().exp()
            return weighted_cross_entropy(logits, shares, weights)

        refined = loss_of(model(images, patches))
        return refined, {"loss refined": refined.item(), "loss raw": loss_of(patches).item()}
