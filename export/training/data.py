"""Training scenes, rendered once and kept as memory-mapped arrays outside the repository."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from benchmarks.scene_vocabulary import SURFACES
from benchmarks.scenes import make_scene
from runtime.cli import console
from runtime.files import atomic_file

OBJECTS = len(SURFACES)  # labels from here on are objects
Pixels = npt.NDArray[np.uint8]
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


@dataclass(frozen=True)
class SceneSet:
    """images (N, S, S, 3) and labels (N, S, S), both uint8."""

    images: Pixels
    labels: Pixels

    def crops(self, rng: np.random.Generator, count: int, size: int) -> tuple[Tensor, Tensor]:
        """Crops at the scenes' own scale, mirrored at random: (n, 3, s, s) normalised, (n, s, s) int64.

        Four of five show an object: most of every scene is table.
        """
        images, labels = [], []
        for _ in range(count):
            i = int(rng.integers(len(self.images)))
            y, x = self._corner(rng, i, size)
            step = -1 if rng.random() < 0.5 else 1
            images.append(self.images[i, y : y + size, x : x + size][:, ::step])
            labels.append(self.labels[i, y : y + size, x : x + size][:, ::step])
        return normalise(np.stack(images)), torch.from_numpy(np.stack(labels).astype(np.int64))

    def _corner(self, rng: np.random.Generator, i: int, size: int) -> tuple[int, int]:
        limit = self.images.shape[1] - size
        label = rng.choice(np.unique(self.labels[i]))
        if label < OBJECTS or rng.random() < 0.2:
            y, x = rng.integers(limit + 1, size=2)
            return int(y), int(x)
        rows, columns = np.nonzero(self.labels[i] == label)
        chosen = rng.integers(len(rows))
        y, x = (int(place[chosen]) - int(rng.integers(size)) for place in (rows, columns))
        return min(max(y, 0), limit), min(max(x, 0), limit)


def normalise(images: Pixels) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 as the `preprocess` kernel does it."""
    return (torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def class_shares(labels: Tensor, classes: int, cell: int) -> Tensor:
    """(N, H, W) labels -> (N, H/cell * W/cell, classes) share of every class in each cell."""
    count, height, width = labels.shape
    rows, columns = height // cell, width // cell
    cells = labels.reshape(count, rows, cell, columns, cell).transpose(2, 3).reshape(count, rows * columns, cell * cell)
    shares = torch.zeros(*cells.shape[:2], classes)
    return shares.scatter_add_(2, cells, torch.ones(()).expand(cells.shape)) / cell**2


def scene_set(split: str, count: int, size: int, folder: Path) -> SceneSet:
    """The first `count` scenes of a split, from `folder` if an earlier run rendered them."""
    paths = [folder / f"{split}-{count}-{size}-{kind}.npy" for kind in ("images", "labels")]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        images = np.empty((count, size, size, 3), np.uint8)
        labels = np.empty((count, size, size), np.uint8)
        with ProcessPoolExecutor() as pool:
            rendered = pool.map(_render, [(seed, size, split) for seed in range(count)], chunksize=32)
            shown = track(rendered, f"{split} scenes", count, console=console, disable=not console.is_terminal)
            for i, (image, label) in enumerate(shown):
                images[i], labels[i] = image, label
        for path, array in zip(paths, (images, labels), strict=True):
            with atomic_file(path) as unfinished:
                np.save(unfinished, array)
    images, labels = (np.load(path, mmap_mode="r") for path in paths)
    return SceneSet(images, labels)


def _render(task: tuple[int, int, str]) -> tuple[Pixels, Pixels]:
    scene = make_scene(*task)
    return scene.image, scene.labels
