"""Phase three: guidance encoder and refinement head, on features of the whole pipeline up to AnyUp."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models.refinement import Aggregator, correlation
from export.models.sam import SamGuidance
from export.training.data import SceneSet, normalise
from export.training.vocabulary import Words


class GuidedHead(nn.Module):
    """Everything behind the correlation."""

    def __init__(self, guidance: SamGuidance, aggregator: Aggregator) -> None:
        super().__init__()
        self.guidance, self.aggregator = guidance, aggregator

    def forward(self, images: Tensor, features: Tensor, text: Tensor) -> Tensor:
        """images (B, 3, S, S), features (B, G*G, C), text (B, K, 2, C) -> logits (B, K, 4G, 4G)."""
        maps = self.guidance(images)
        side = int(features.shape[1] ** 0.5)
        logits = []
        for i in range(len(images)):
            cosines = correlation(features[i], text[i], (side, side))
            near, middle, far = (level[i : i + 1] for level in maps)
            refined = self.aggregator.refine(cosines, near, text[i], torch.ones(len(cosines), device=text.device))
            logits.append(self.aggregator.decode(refined, middle, far))
        return torch.stack(logits)


@dataclass(frozen=True)
class HeadLoss:
    """Cross-entropy over the classes at hand and binary cross-entropy of each, at a quarter of the image's size.

    Candidates are the classes of the scene and others at random: the head must serve any list of names.
    """

    words: Words
    text: Tensor  # (69, 2, C)

    def candidates(self, labels: Tensor, rng: np.random.Generator, count: int) -> Tensor:
        """(count,) VOCABULARY indices, those in the scene first; never an unseen pair."""
        present = torch.from_numpy(np.unique(labels.numpy()))
        others = np.setdiff1d(self.words.train.numpy(), present.numpy())
        extra = rng.permutation(others)[: max(0, count - len(present))]
        return torch.cat([present, torch.from_numpy(extra)])

    def __call__(
        self, model: GuidedHead, images: Tensor, features: Tensor, labels: Tensor, classes: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """labels (B, S, S) int64 VOCABULARY indices, classes (B, K) candidates of each image."""
        logits = model(images, features, self.text[classes])
        shares = class_maps(labels, classes, images.shape[-1] // logits.shape[-1]).to(images.device)
        cross = -(shares * logits.log_softmax(dim=1)).sum(dim=1)
        objects = (shares * (classes >= self.words.surfaces).to(images.device)[..., None, None]).sum(dim=1)
        cross = (cross * (1 + 2 * objects)).sum() / (1 + 2 * objects).sum()
        binary = F.binary_cross_entropy_with_logits(logits, shares)
        return cross + 2 * binary, {"loss cross": cross.item(), "loss binary": binary.item()}


def class_maps(labels: Tensor, classes: Tensor, cell: int) -> Tensor:
    """(B, S, S) labels -> (B, K, S/cell, S/cell) share of every candidate in each cell."""
    maps = (labels[:, None] == classes[..., None, None]).float()
    return F.avg_pool2d(maps, cell)


@torch.inference_mode()
def map_accuracy(
    model: GuidedHead, scenes: SceneSet, features: npt.NDArray[np.float16], text: Tensor, words: Words
) -> dict[str, float]:
    """Mean IoU in percent at a quarter of the image's size, the whole vocabulary as candidates."""
    classes, device = len(text), text.device
    confusion = np.zeros((classes, classes), np.int64)
    for image, label, feature in zip(scenes.images, scenes.labels, features, strict=True):
        refined = torch.from_numpy(feature[None].astype(np.float32)).to(device)
        found = model(normalise(image[None]).to(device), refined, text[None])[0]
        cell = label.shape[0] // found.shape[-1]
        truth = label[cell // 2 :: cell, cell // 2 :: cell]
        pairs = truth.astype(np.int64) * classes + found.argmax(dim=0).cpu().numpy()
        confusion += np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    iou = 100 * confusion.diagonal() / np.maximum(union, 1)
    unseen, there = words.unseen.numpy(), confusion.sum(1) > 0
    objects = np.arange(classes) >= words.surfaces
    return {
        "surfaces": float(iou[there & ~objects].mean()),
        "seen": float(iou[there & objects & ~unseen].mean()),
        "unseen": float(iou[there & unseen].mean()),
    }
