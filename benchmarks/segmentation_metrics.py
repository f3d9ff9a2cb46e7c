"""How well label maps fit the truth: IoU, boundary F-score, and the IoU of small objects. All accumulate over images.

Labels are class indices 0 to K - 1. Truth pixels with IGNORE count nowhere; a prediction of K or more is no class.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

IGNORE = 65535
BOUNDARY_REACH = 2  # pixels
SMALL_MARGIN = 4  # pixels around the box of a small object

Labels = npt.NDArray[np.uint16] | npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom excluded


def mean_of(values: Floats, members: Sequence[int] | None = None) -> float | None:
    """The mean over `members` (None: all), NaN left out; None when nothing is left."""
    chosen = values if members is None else values[list(members)]
    chosen = chosen[~np.isnan(chosen)]
    return float(chosen.mean()) if chosen.size else None


def ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> Floats:
    """part / whole, NaN where `whole` is 0."""
    shares: Floats = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return shares


class Confusion:
    """`counts` (K, K + 1): pixels by true class and predicted class; the last column is "no class"."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes + 1), np.int64)

    def add(self, truth: Labels, predicted: Labels) -> None:
        classes, columns = self.counts.shape
        kept = truth != IGNORE
        guess = np.minimum(predicted[kept].astype(np.int64), classes)
        cells = truth[kept].astype(np.int64) * columns + guess
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)

    def ious(self) -> Floats:
        """(K,) hits / (truth + prediction - hits); NaN for a class that neither holds."""
        square = self.counts[:, :-1]
        hits = np.diagonal(square)
        return ratio(hits, self.counts.sum(1) + square.sum(0) - hits)

    def accuracy(self) -> float | None:
        """The share of pixels with the right class."""
        total = self.counts.sum()
        return float(np.trace(self.counts[:, :-1]) / total) if total else None


class SmallObjects:
    """IoU of small objects, near them: the box of each, widened by 4 px on every side, is looked at for its class.

    Hits and unions are summed over the objects of a class, and their ratios averaged over classes. A stray patch
    of the class elsewhere in the image does not count, so this is closer to a recall than an ordinary IoU: it says
    whether what is small was found in its place and with its outline.
    """

    def __init__(self, classes: int) -> None:
        self.objects = 0
        self._hits, self._unions = np.zeros((2, classes), np.int64)

    def add(self, truth: Labels, predicted: Labels, objects: Sequence[tuple[int, Box]]) -> None:
        """`objects`: class and box of each small object."""
        for label, (left, top, right, bottom) in objects:
            rows = slice(max(0, top - SMALL_MARGIN), bottom + SMALL_MARGIN)
            near = rows, slice(max(0, left - SMALL_MARGIN), right + SMALL_MARGIN)
            there = truth[near] == label
            found = (predicted[near] == label) & (truth[near] != IGNORE)
            self._hits[label] += np.count_nonzero(there & found)
            self._unions[label] += np.count_nonzero(there | found)
            self.objects += 1

    def ious(self) -> Floats:
        return ratio(self._hits, self._unions)


class Boundaries:
    """F-score of the outlines: precision and recall of boundary pixels that have a partner within 2 px.

    A boundary pixel belongs to the class and touches, side or corner, one that does not; the edge of the image and
    ignored pixels make no boundary. Pixels are summed over images, and the score of each class is averaged over
    the classes that have an outline in truth or prediction.
    """

    def __init__(self, classes: int) -> None:
        self._true, self._found, self._true_met, self._found_met = np.zeros((4, classes), np.int64)

    def add(self, truth: Labels, predicted: Labels) -> None:
        ignored = truth == IGNORE
        guess = np.where(ignored, IGNORE, predicted.astype(np.uint16))
        for label in np.union1d(truth, guess):
            if label < len(self._true):
                self._add_class(int(label), outline(truth == label, ignored), outline(guess == label, ignored))

    def _add_class(self, label: int, true: Mask, found: Mask) -> None:
        self._true[label] += np.count_nonzero(true)
        self._found[label] += np.count_nonzero(found)
        self._true_met[label] += np.count_nonzero(true & widen(found))
        self._found_met[label] += np.count_nonzero(found & widen(true))

    def scores(self) -> Floats:
        """(K,) 2 P R / (P + R); 0 for an outline on one side only, NaN for none at all."""
        precision = np.nan_to_num(ratio(self._found_met, self._found))
        recall = np.nan_to_num(ratio(self._true_met, self._true))
        score = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        score[(self._true == 0) & (self._found == 0)] = np.nan
        return score


def outline(mask: Mask, ignored: Mask) -> Mask:
    """The boundary pixels of `mask`."""
    inside = cv2.erode((mask | ignored).view(np.uint8), np.ones((3, 3), np.uint8))
    edge: Mask = mask & (inside == 0)
    return edge


def widen(mask: Mask) -> Mask:
    side = 2 * BOUNDARY_REACH + 1
    wide: Mask = cv2.dilate(mask.view(np.uint8), np.ones((side, side), np.uint8)) > 0
    return wide
