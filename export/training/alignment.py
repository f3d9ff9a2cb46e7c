"""Phase one, as in the paper: text is aligned with the class token and with patch features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models.backbone import DinoVisionTransformer
from export.models.dinotxt import TextEncoder, VisionHead
from export.training.data import class_shares
from export.training.outlines import TARGETS, outline_loss, outline_targets
from export.training.vocabulary import Words
from runtime.rope import rope_tables

OBJECT_WEIGHT = 4.0  # surfaces fill most of every scene
PATCH = 16


@dataclass(frozen=True)
class Window:
    """Where a training crop lies in the patch grid that the product will use.

    Rotary angles are relative to the grid: the same two patches are further apart, in angle, on a small one. Crops
    cheap enough to train on must therefore pose as a part of a 12x12 or 20x20 grid.
    """

    grid: tuple[int, int]
    row: int = 0
    column: int = 0

    def rope_tables(self, backbone: DinoVisionTransformer, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Sine and cosine (prefix + rows * columns, head_dim) of a window of this size."""
        prefix = backbone.prefix_tokens
        tables = rope_tables(backbone.rope_embed.periods.tolist(), self.grid, prefix)
        device = backbone.cls_token.device
        return self._cut(tables[0], prefix, size).to(device), self._cut(tables[1], prefix, size).to(device)

    def _cut(self, table: npt.NDArray[np.float32], prefix: int, size: tuple[int, int]) -> Tensor:
        patches = torch.from_numpy(table[prefix:]).reshape(*self.grid, -1)
        patches = patches[self.row : self.row + size[0], self.column : self.column + size[1]]
        return torch.cat([torch.from_numpy(table[:prefix]), patches.flatten(0, 1)])


class Alignment(nn.Module):
    """Backbone, vision head and text encoder with the two temperatures of the contrastive losses."""

    def __init__(self, backbone: DinoVisionTransformer, head: VisionHead, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.backbone, self.head, self.text_encoder = backbone, head, text_encoder
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.presence_scale = nn.Parameter(torch.tensor(2.0))
        self.presence_bias = nn.Parameter(torch.tensor(-2.0))
        self.outlines = nn.Linear(backbone.patch_embed.proj.out_channels, TARGETS)

    def backbone_tokens(self, images: Tensor, window: Window | None = None) -> Tensor:
        """(B, 3, H, W) -> the backbone's tokens (B, prefix + N, D)."""
        size = (images.shape[2] // PATCH, images.shape[3] // PATCH)
        sin, cos = (window or Window(size)).rope_tables(self.backbone, size)
        tokens: Tensor = self.backbone(images, sin, cos)
        return tokens

    def features(self, backbone_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """-> class token (B, D) and patch features (B, N, D), unit norm."""
        tokens = F.normalize(self.head(backbone_tokens), dim=-1)
        return tokens[:, 0], tokens[:, self.backbone.prefix_tokens :]

    def raw_patches(self, images: Tensor) -> Tensor:
        """(B, N, D) as the merge and AnyUp see them."""
        tokens: Tensor = self.head(self.backbone_tokens(images))
        return tokens[:, self.backbone.prefix_tokens :]


@dataclass(frozen=True)
class AlignmentLoss:
    """Soft cross-entropy of patches with class names, with shapes alone and with appearances alone.

    The last two teach the text encoder that names are composed, which is what unseen pairs rest on. There a green
    object does not count against "cube" while green cubes are unseen: it would learn that green things are no cubes.
    """

    words: Words

    def __call__(
        self, model: Alignment, images: Tensor, labels: Tensor, window: Window
    ) -> tuple[Tensor, dict[str, float]]:
        """labels (B, H, W) int64, on the CPU. Unseen pairs never occur in training."""
        words, device = self.words, images.device
        # How much of every patch belongs to every class.
        shares = class_shares(labels, len(words.unseen), PATCH)[..., words.train].to(device)
        text = model.text_encoder(words.ids)
        global_text, local_text = text.unbind(dim=1)
        tokens = model.backbone_tokens(images, window)
        cls, patches = model.features(tokens)
        logits = patches @ local_text.T * model.logit_scale.exp()
        names, shapes, looks = logits.split([words.names, words.shapes, words.looks], dim=-1)
        objects = shares[..., words.surfaces :].sum(dim=-1)
        weights = 1 + (OBJECT_WEIGHT - 1) * objects
        shape_shares, look_shares = shares @ words.shape_of, shares @ words.look_of
        losses = {
            "name": weighted_cross_entropy(names, shares, weights),
            "shape": weighted_cross_entropy(shapes + words.excused(look_shares, shape_shares), shape_shares, objects),
            "look": weighted_cross_entropy(looks + words.excused(shape_shares, look_shares), look_shares, objects),
            "composition": composition_loss(text[words.surfaces : words.names], words.not_additive),
            "presence": presence_loss(model, cls @ global_text[: words.names].T, shares),
            "outline": outline_loss(
                model.outlines(tokens[:, model.backbone.prefix_tokens :]),
                *(targets.to(device) for targets in outline_targets(labels, PATCH)),
            ),
        }
        total = losses["name"] + 0.5 * losses["shape"] + 0.3 * losses["look"]
        total = total + 0.2 * losses["presence"] + losses["composition"] + losses["outline"]
        return total, {f"loss {name}": loss.item() for name, loss in losses.items()}


def weighted_cross_entropy(logits: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """Targets need not sum to one: a patch counts by its weight and by what it shows of the classes asked for."""
    losses = -(shares * logits.log_softmax(dim=-1)).sum(dim=-1)
    return (losses * weights).sum() / (shares.sum(dim=-1) * weights).sum().clamp(min=1e-6)


def composition_loss(pairs: Tensor, not_additive: Tensor) -> Tensor:
    """How far the embeddings (pairs, 2, D) are from a sum of an appearance's and a shape's vector.

    Unseen pairs are named right only if a name means what its words mean; the pairs of training alone could as well
    be learnt by heart.
    """
    return (not_additive @ pairs.flatten(1)).square().sum(dim=-1).mean()


def presence_loss(model: Alignment, cosines: Tensor, shares: Tensor) -> Tensor:
    present = (shares.amax(dim=1) > 0.1).float()
    return F.binary_cross_entropy_with_logits(cosines * model.presence_scale.exp() + model.presence_bias, present)


@torch.inference_mode()
def patch_accuracy(model: Alignment, images: Tensor, shares: Tensor, words: Words) -> dict[str, float]:
    """Share of object patches (more than half covered by one) named right: appearance, shape, and both.

    shares (B, N, K) over the whole vocabulary, unseen pairs too, on the CPU.
    """
    text = model.text_encoder(words.all_ids)[:, 1]
    found = (model.features(model.backbone_tokens(images))[1] @ text.T).argmax(dim=-1).cpu()
    most, truth = shares.max(dim=-1)
    chosen = (most > 0.5) & (truth >= words.surfaces)
    found, truth = found[chosen], truth[chosen]
    look, shape = words.attributes(found), words.attributes(truth)
    right_look, right_shape = look[0] == shape[0], look[1] == shape[1]
    unseen = words.unseen[truth]
    both = right_look & right_shape
    return {
        "look": right_look.float().mean().item(),
        "shape": right_shape.float().mean().item(),
        "seen": both[~unseen].float().mean().item(),
        "unseen": both[unseen].float().mean().item(),
    }
