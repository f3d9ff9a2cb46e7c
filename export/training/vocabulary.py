"""The training prompts: class names as the product sees them, and their two parts alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.scene_vocabulary import APPEARANCES, SHAPES, SURFACES, UNSEEN, VOCABULARY
from runtime.manifest import Prompting
from runtime.text import Tokenizer

PARTS = (*SHAPES, *(f"{appearance} object" for appearance in APPEARANCES))


@dataclass(frozen=True)
class Words:
    """Token ids and the relations between names, shapes and appearances.

    Attributes:
        train: (K,) which of VOCABULARY are trained: surfaces, then seen pairs.
        ids: (K + shapes + appearances, L) prompts of the training classes and of their parts.
        all_ids: (69, L) prompts of the whole vocabulary.
        shape_of, look_of: (K, shapes) and (K, appearances), 1 where a class has that part.
        not_additive: (pairs, pairs) projection onto what no sum of an appearance and a shape explains.
        seen_pairs: (looks, shapes) 1 where a pair occurs in training.
        unseen: (69,) True for the pairs kept out of training.
    """

    train: Tensor
    ids: Tensor
    all_ids: Tensor
    shape_of: Tensor
    look_of: Tensor
    not_additive: Tensor
    seen_pairs: Tensor
    unseen: Tensor
    surfaces: int = len(SURFACES)
    shapes: int = len(SHAPES)
    looks: int = len(APPEARANCES)

    @property
    def names(self) -> int:
        return len(self.train)

    def to(self, device: torch.device) -> Words:
        """The tensors that losses compute with; indices of names stay."""
        moved = ("ids", "all_ids", "shape_of", "look_of", "not_additive", "seen_pairs")
        return replace(self, **{name: getattr(self, name).to(device) for name in moved})

    def excused(self, given: Tensor, asked: Tensor) -> Tensor:
        """-1e4 for the shapes that a patch's main appearance is never seen with, else 0; or the other way round.

        Args:
            given, asked: Shares (..., looks) and (..., shapes) of the patch, or the other way round. What a patch
                does show, where it holds two objects, is never excused.
        """
        pairs = self.seen_pairs if given.shape[-1] == self.looks else self.seen_pairs.T
        return (pairs[given.argmax(dim=-1)] - 1) * (asked == 0) * 1e4

    def attributes(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """VOCABULARY indices -> appearance and shape, -1 for surfaces."""
        pair = labels - self.surfaces
        none = torch.full_like(labels, -1)
        surface = labels < self.surfaces
        return torch.where(surface, none, pair % self.looks), torch.where(surface, none, pair // self.looks)


def words(tokenizer: Tokenizer, prompting: Prompting) -> Words:
    def ids(names: list[str]) -> Tensor:
        return torch.from_numpy(tokenizer.encode([prompting.template.replace("{}", name) for name in names]))

    train = [i for i, name in enumerate(VOCABULARY) if name not in UNSEEN]
    names = [VOCABULARY[i] for i in train]
    shape_of = np.array([[name.endswith(f" {shape}") for shape in SHAPES] for name in names], dtype=np.float32)
    look_of = np.array([[name.startswith(f"{look} ") for look in APPEARANCES] for name in names], dtype=np.float32)
    parts = np.concatenate([look_of, shape_of], axis=1)[len(SURFACES) :].astype(np.float64)
    not_additive = np.eye(len(parts)) - parts @ np.linalg.pinv(parts)
    return Words(
        train=torch.tensor(train),
        ids=ids([*names, *PARTS]),
        all_ids=ids(list(VOCABULARY)),
        shape_of=torch.from_numpy(shape_of),
        look_of=torch.from_numpy(look_of),
        seen_pairs=torch.from_numpy(look_of.T @ shape_of),
        not_additive=torch.from_numpy(not_additive.astype(np.float32)),
        unseen=torch.tensor([name in UNSEEN for name in VOCABULARY]),
    )


def taught_texts(prompting: Prompting) -> list[str]:
    """Everything whose words the tokenizer must know."""
    return [prompting.template.replace("{}", name) for name in (*VOCABULARY, *PARTS)]
