"""Which classes are refined: those with the strongest cosine anywhere, in ascending order."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.classes import select_classes


def cosines(strongest: list[float]) -> np.ndarray:
    """(K, 2, 3, 3), the strongest value of each class at a random place."""
    rng = np.random.default_rng(0)
    maps = rng.uniform(-1, -0.9, (len(strongest), 2, 3, 3)).astype(np.float32)
    for class_maps, value in zip(maps, strongest, strict=True):
        class_maps.flat[rng.integers(18)] = value
    return maps


@pytest.mark.parametrize(("count", "limit"), [(1, 0), (500, 0), (3, 3), (3, 256)])
def test_all_fit(count: int, limit: int) -> None:
    assert select_classes(cosines([0.5] * count), limit) is None


def test_the_strongest_in_ascending_order() -> None:
    kept = select_classes(cosines([0.1, 0.9, 0.2, 0.8, 0.7]), 3)
    assert kept is not None
    assert kept.tolist() == [1, 3, 4]
    assert kept.dtype == np.int64


def test_one_place_is_enough() -> None:
    maps = np.full((3, 2, 3, 3), 0.5, np.float32)
    maps[1] = 0
    maps[1, 1, 2, 2] = 0.6
    maps[2] = 0.4
    assert select_classes(maps, 1).tolist() == [1]  # type: ignore[union-attr]


@pytest.mark.parametrize("limit", [1, 7, 19])
def test_as_a_sort_does_it(limit: int) -> None:
    maps = np.random.default_rng(limit).standard_normal((20, 2, 4, 4)).astype(np.float32)
    order = np.argsort(-maps.max(axis=(1, 2, 3)))[:limit]
    assert select_classes(maps, limit).tolist() == sorted(order)  # type: ignore[union-attr]


def test_negative_cosines() -> None:
    assert select_classes(cosines([-0.5, -0.1, -0.3]), 2).tolist() == [1, 2]  # type: ignore[union-attr]
