"""Which classes are refined: those on the shortlist of some pixel, and of them those with the strongest cosine."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.classes import refined_classes, select_classes, shortlist_classes


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


# --- the shortlist


def listed_by_sorting(maps: np.ndarray, most: int) -> list[int]:
    """Pixel by pixel, one class after the other."""
    best = maps.max(axis=1).reshape(len(maps), -1)
    return sorted({int(k) for pixel in best.T for k in np.argsort(-pixel, kind="stable")[:most]})


@pytest.mark.parametrize("most", [1, 2, 7, 19])
@pytest.mark.parametrize("seed", range(3))
def test_the_shortlist_as_a_sort_makes_it(most: int, seed: int) -> None:
    maps = np.random.default_rng(seed).standard_normal((20, 2, 2, 3)).astype(np.float32)
    listed = shortlist_classes(maps, most)
    assert (list(range(20)) if listed is None else listed.tolist()) == listed_by_sorting(maps, most)


def test_one_pixel_and_one_prompt_are_enough() -> None:
    maps = np.full((4, 2, 3, 3), -0.5, np.float32)
    maps[1] = 0.5  # the first everywhere but in one place
    maps[2] = 0.4  # the second nearly everywhere
    maps[3, 1, 2, 2] = 0.6
    assert shortlist_classes(maps, 1).tolist() == [1, 3]  # type: ignore[union-attr]
    assert shortlist_classes(maps, 2).tolist() == [1, 2, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize(("classes", "most"), [(5, 0), (5, 5), (5, 6), (1, 1)])
def test_a_shortlist_that_holds_all(classes: int, most: int) -> None:
    maps = np.random.default_rng(0).standard_normal((classes, 2, 3, 3)).astype(np.float32)
    assert shortlist_classes(maps, most) is None


def test_every_class_leads_somewhere() -> None:
    maps = np.eye(9, dtype=np.float32).reshape(9, 1, 3, 3)
    assert shortlist_classes(maps, 1) is None


def test_equal_classes_stay_together() -> None:
    maps = np.zeros((5, 1, 2, 2), np.float32)
    maps[[1, 3]] = 0.5
    assert shortlist_classes(maps, 1).tolist() == [1, 3]  # type: ignore[union-attr]


def test_nothing_is_dropped_where_a_cosine_is_no_number() -> None:
    maps = np.random.default_rng(0).standard_normal((6, 2, 2, 2)).astype(np.float32)
    maps[2, 0, 1, 1] = np.nan
    assert shortlist_classes(maps, 1) is None


def test_pad_len_chooses_among_the_listed() -> None:
    """Class 0 is strong, but nowhere the strongest."""
    maps = np.full((4, 1, 1, 3), -0.5, np.float32)
    maps[:, 0, 0] = [[0.88, 0, 0], [0.9, 0, 0], [0, 0.81, 0], [0, 0, 0.95]]
    assert refined_classes(maps, 0, 1).tolist() == [1, 2, 3]  # type: ignore[union-attr]
    assert refined_classes(maps, 2, 1).tolist() == [1, 3]  # type: ignore[union-attr]
    assert refined_classes(maps, 3, 0).tolist() == [0, 1, 3]  # type: ignore[union-attr]
    assert refined_classes(maps, 3, 1).tolist() == [1, 2, 3]  # type: ignore[union-attr]
    assert refined_classes(maps, 4, 4) is refined_classes(maps, 0, 0) is None
