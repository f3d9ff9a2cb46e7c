"""What a stream computes anew: every decision, on photos whose changes are known."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from small_models import random_photo

from runtime.errors import InputError
from runtime.geometry import Geometry
from runtime.reuse import SAMPLES, THRESHOLD, Reuse, differs, samples

# 2x2 crops of 64 at stride 32: the middle third is in all of them, a corner in one.
GEOMETRY = Geometry(image_size=96, crop_size=64, stride=32)
ALL = (0, 1, 2, 3)
GREY = np.full((96, 96, 3), 100, np.uint8)


def brighter(photo: np.ndarray, rows: slice, columns: slice, by: int = 60) -> np.ndarray:
    changed = photo.copy()
    changed[rows, columns] += np.uint8(by)
    return changed


class Stream:
    """Frames one after the other, the features always kept."""

    def __init__(self, **options: Any) -> None:
        self.reuse = Reuse(GEOMETRY, **options)

    def __call__(self, photo: np.ndarray, color: str = "rgb") -> tuple[bool, tuple[int, ...]]:
        found = self.reuse.refresh(photo, color, self.reuse.last)
        return found.full, found.crops


def test_by_default_everything_is_computed() -> None:
    stream = Stream()
    assert [stream(GREY) for _ in range(3)] == [(True, ALL)] * 3


@pytest.mark.parametrize("period", [1, 2, 3])
def test_the_whole_image_every_nth_frame(period: int) -> None:
    stream = Stream(reuse_global=period)
    found = [stream(random_photo(50, 70, seed)) for seed in range(7)]
    assert [full for full, _ in found] == [index % period == 0 for index in range(7)]
    assert {crops for _, crops in found} == {ALL}


def test_a_static_scene_computes_its_crops_once() -> None:
    stream, photo = Stream(crops="changed"), random_photo()
    assert [stream(photo.copy()) for _ in range(3)] == [(True, ALL), (True, ()), (True, ())]


@pytest.mark.parametrize(
    ("rows", "columns", "crops"),
    [
        (slice(0, 32), slice(0, 32), (0,)),
        (slice(0, 32), slice(64, 96), (1,)),
        (slice(64, 96), slice(0, 32), (2,)),
        (slice(64, 96), slice(64, 96), (3,)),
        (slice(0, 32), slice(32, 64), (0, 1)),
        (slice(32, 64), slice(0, 32), (0, 2)),
        (slice(40, 56), slice(40, 56), ALL),
        (slice(2, 10), slice(2, 10), (0,)),  # an object of 8 pixels
    ],
)
@pytest.mark.parametrize("scale", [(1, 1), (3, 5)])
def test_only_the_crops_that_see_a_change(
    rows: slice, columns: slice, crops: tuple[int, ...], scale: tuple[int, int]
) -> None:
    """At any size of the photo: crops are squares of the model's input."""
    stream = Stream(crops="changed")
    for photo, expected in ((GREY, ALL), (brighter(GREY, rows, columns, 70), crops)):
        assert stream(photo.repeat(scale[0], axis=0).repeat(scale[1], axis=1)) == (True, expected)


def test_a_change_is_told_once() -> None:
    stream, changed = Stream(crops="changed"), brighter(GREY, slice(0, 20), slice(0, 20))
    assert [stream(photo)[1] for photo in (GREY, changed, changed, GREY, GREY)] == [ALL, (0,), (), (0,), ()]


def test_slow_changes_add_up() -> None:
    """Each frame is within the threshold of the one before it."""
    stream = Stream(crops="changed")
    found = [stream(GREY + np.uint8(3 * step))[1] for step in range(7)]
    assert found == [ALL, (), (), ALL, (), (), ALL]


def test_a_crop_remembers_its_own_frame() -> None:
    """Crop 0 was computed again in frame 1: then it is compared with that one, crop 3 still with frame 0."""
    stream, step = Stream(crops="changed"), int(THRESHOLD) - 1
    top = brighter(GREY, slice(0, 20), slice(0, 20))
    both = brighter(top, slice(70, 96), slice(70, 96), step)
    assert [stream(photo)[1] for photo in (GREY, top, both)] == [ALL, (0,), ()]
    assert stream(brighter(both, slice(70, 96), slice(70, 96), 2))[1] == (3,)


@pytest.mark.parametrize(("by", "changed"), [(int(THRESHOLD), False), (int(THRESHOLD) + 1, True)])
def test_the_threshold(by: int, changed: bool) -> None:
    stream = Stream(crops="changed")
    stream(GREY)
    assert stream(GREY + np.uint8(by))[1] == (ALL if changed else ())


@pytest.mark.parametrize(("deviation", "changed"), [(5, False), (10, True)])
def test_noise(deviation: float, changed: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        now, then = (np.clip(100 + rng.normal(0, deviation, (96, 96, 3)), 0, 255).astype(np.uint8) for _ in range(2))
        assert differs(samples(now, GEOMETRY), samples(then, GEOMETRY)) == changed


@pytest.mark.parametrize(("contrast", "changed"), [(30, False), (35, True)])
def test_an_edge_that_moves_by_a_quarter_of_a_patch(contrast: int, changed: bool) -> None:
    then, now = (brighter(GREY, slice(None), slice(start, None), contrast) for start in (48, 52))
    assert differs(samples(now, GEOMETRY), samples(then, GEOMETRY)) == changed


def test_dark_and_bright_are_as_far_apart_either_way() -> None:
    black, white = (np.full((4, 4, 3), value, np.uint8) for value in (0, 255))
    assert differs(black, white)
    assert differs(white, black)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (24, 24), (1080, 1920)])
def test_samples_of_any_size(shape: tuple[int, int]) -> None:
    photo = random_photo(*shape)
    found = samples(photo[:, ::-1], GEOMETRY)
    side = SAMPLES * GEOMETRY.grid
    assert found.shape == (side, side, 3)
    for y, x in ((0, 0), (side - 1, side - 1), (7, 11)):
        row, column = (int((index + 0.5) / side * length) for index, length in zip((y, x), shape, strict=True))
        assert np.array_equal(found[y, x], photo[row, shape[1] - 1 - column])


# --- starting afresh


def test_another_size_or_colour_starts_afresh() -> None:
    stream = Stream(reuse_global=4, crops="changed")
    first, later = (True, ALL), (False, ())
    turned = GREY[:48]
    assert [stream(photo) for photo in (GREY, GREY, turned, turned, GREY)] == [first, later, first, later, first]
    assert [stream(GREY, "bgr"), stream(GREY, "bgr"), stream(GREY)] == [first, later, first]


def test_the_count_of_frames_starts_afresh_too() -> None:
    stream = Stream(reuse_global=2)
    assert [stream(photo)[0] for photo in (GREY, GREY[:48], GREY[:48], GREY[:48])] == [True, True, False, True]


def test_features_that_are_not_those_of_the_last_frame_serve_no_more() -> None:
    reuse = Reuse(GEOMETRY, reuse_global=8, crops="changed")
    first = reuse.refresh(GREY, "rgb", None)
    second = reuse.refresh(GREY, "rgb", first)
    assert (second.full, second.crops) == (False, ())
    for kept in (first, None, Reuse(GEOMETRY).refresh(GREY, "rgb", None)):
        found = reuse.refresh(GREY, "rgb", kept)
        assert (found.full, found.crops) == (True, ALL)


def test_two_streams_know_nothing_of_each_other() -> None:
    one, other = Stream(crops="changed"), Stream(crops="changed")
    assert [one(GREY)[1], other(GREY)[1], one(GREY)[1]] == [ALL, ALL, ()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reuse_global": 0}, "reuse_global is 0; expected 1 (the whole image in every frame) or more"),
        ({"reuse_global": -3}, "reuse_global is -3; expected 1"),
        ({"crops": "some"}, "crops is 'some'; expected 'all' or 'changed'"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        Reuse(GEOMETRY, **options)
