"""An aid of the alignment phase: every patch tells the outline of the object that it belongs to.

A name is one of six shapes for a whole object; its outline and place are 68 numbers that only attention over the
object can tell. With them shapes are learnt in far fewer steps. The layer that predicts them is not shipped.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.scene_vocabulary import SURFACES

CELLS = 8  # an outline is a picture of 8 x 8
TARGETS = CELLS**2 + 4
LEAST_SHARE = 0.3  # of a patch, for its object to count
BOX_UNIT = 64.0  # pixels


def outline_targets(labels: Tensor, cell: int) -> tuple[Tensor, Tensor]:
    """(B, H, W) labels -> targets (B, N, 68) float32 and which patches have one, (B, N) bool.

    A target is the share that the object covers of each of 8 x 8 cells of its bounding box, then the box's left,
    top, right and bottom edge relative to the patch's centre, in units of 64 pixels. Objects that touch and have
    the same name count as one.
    """
    count, height, width = labels.shape
    rows, columns = height // cell, width // cell
    targets = np.zeros((count, rows, columns, TARGETS), np.float32)
    most = np.full((count, rows, columns), LEAST_SHARE, np.float32)
    for image, target, best in zip(labels.numpy(), targets, most, strict=True):
        for mask, box in objects(image):
            share = mask.reshape(rows, cell, columns, cell).mean(axis=(1, 3))
            mine = share > best
            best[mine] = share[mine]
            target[mine, : CELLS**2] = outline(mask, box).ravel()
            target[mine, CELLS**2 :] = relative_boxes(box, rows, columns, cell)[mine]
    there = torch.from_numpy(most > LEAST_SHARE).flatten(1)
    return torch.from_numpy(targets).flatten(1, 2), there


def objects(labels: npt.NDArray[np.int64]) -> list[tuple[npt.NDArray[np.float32], tuple[int, int, int, int]]]:
    """Every connected region of an object's label: its mask and its box (left, top, right, bottom)."""
    found = []
    for label in np.unique(labels[labels >= len(SURFACES)]):
        number, regions, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8))
        for region in range(1, number):
            left, top, width, height, _ = (int(value) for value in stats[region])
            found.append(((regions == region).astype(np.float32), (left, top, left + width, top + height)))
    return found


def outline(mask: npt.NDArray[np.float32], box: tuple[int, int, int, int]) -> npt.NDArray[np.float32]:
    left, top, right, bottom = box
    inside = mask[top:bottom, left:right]
    shrinks = min(inside.shape) >= CELLS
    picture = cv2.resize(inside, (CELLS, CELLS), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(picture, np.float32)


def relative_boxes(box: tuple[int, int, int, int], rows: int, columns: int, cell: int) -> npt.NDArray[np.float32]:
    """(rows, columns, 4): the box seen from each patch's centre."""
    y = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) * cell
    x = (np.arange(columns, dtype=np.float32)[None] + 0.5) * cell
    left, top, right, bottom = box
    edges = np.broadcast_arrays(left - x, top - y, right - x, bottom - y)
    return (np.stack(edges, axis=-1) / BOX_UNIT).astype(np.float32)


def outline_loss(predicted: Tensor, targets: Tensor, there: Tensor) -> Tensor:
    """Binary cross-entropy of the outline's cells and smooth L1 of the box, over patches with an object."""
    predicted, targets = predicted[there], targets[there]
    cells = F.binary_cross_entropy_with_logits(predicted[:, : CELLS**2], targets[:, : CELLS**2])
    return cells + F.smooth_l1_loss(predicted[:, CELLS**2 :], targets[:, CELLS**2 :], beta=0.25)
