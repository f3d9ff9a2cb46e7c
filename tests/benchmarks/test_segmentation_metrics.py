"""The metrics against arithmetic done by hand and against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.segmentation_metrics import IGNORE, Boundaries, Confusion, SmallObjects, mean_of


def labels(*rows: str) -> np.ndarray:
    """Digits are classes, "." is ignored."""
    return np.array([[IGNORE if letter == "." else int(letter) for letter in row] for row in rows], np.uint16)


def test_iou_by_hand() -> None:
    """Class 0: 3 hits of 5; class 1: 2 of 4; class 2: only predicted; class 3: nowhere."""
    confusion = Confusion(4)
    confusion.add(labels("0000", "111."), labels("0001", "1022"))
    # 0: hits 3, true 4, predicted 4 -> 3/5. 1: hits 1, true 3, predicted 2 -> 1/4. 2: predicted 1 (one is ignored).
    np.testing.assert_allclose(confusion.ious(), [3 / 5, 1 / 4, 0, np.nan])
    assert mean_of(confusion.ious()) == pytest.approx((3 / 5 + 1 / 4) / 3)
    assert mean_of(confusion.ious(), [0, 3]) == pytest.approx(3 / 5)
    assert mean_of(confusion.ious(), [3]) is None
    assert confusion.accuracy() == pytest.approx(4 / 7)


def test_pixels_without_a_predicted_class_are_misses() -> None:
    confusion = Confusion(2)
    confusion.add(labels("0011"), np.array([[0, 255, 1, 1]], np.uint8))
    np.testing.assert_allclose(confusion.ious(), [0.5, 1])


def test_only_ignored_pixels() -> None:
    confusion = Confusion(2)
    confusion.add(labels("...."), labels("0101"))
    assert mean_of(confusion.ious()) is None
    assert confusion.accuracy() is None


maps = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 3, IGNORE]), st.integers(0, 4)),  # 4 is no class
    min_size=2,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(pixels=maps)
def test_iou_as_written_in_plain_python(pixels: list[tuple[int, int]]) -> None:
    confusion = Confusion(4)
    half = len(pixels) // 2  # two images accumulate
    for part in (pixels[:half], pixels[half:]):
        truth, predicted = np.array(part, np.uint16).reshape(-1, 1, 2).transpose(2, 0, 1)
        confusion.add(truth, predicted)
    counted = [(true, guess) for true, guess in pixels if true != IGNORE]
    for label, found in enumerate(confusion.ious()):
        both = sum(true == guess == label for true, guess in counted)
        either = sum(label in pair for pair in counted)
        assert found == pytest.approx(both / either) if either else np.isnan(found)


def square(left: int, top: int, side: int = 10, size: int = 40) -> np.ndarray:
    made = np.zeros((size, size), np.uint16)
    made[top : top + side, left : left + side] = 1
    return made


def boundary(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    found = Boundaries(2)
    found.add(truth, predicted)
    return found.scores()


def test_boundary_of_shifted_squares() -> None:
    truth = square(10, 10)
    np.testing.assert_allclose(boundary(truth, square(10, 10)), 1)
    np.testing.assert_allclose(boundary(truth, square(12, 12)), 1)  # within the 2 px
    # Shifted by 4 to the right, of 36 outline pixels 20 have a partner: 8 of 10 in the top and the bottom row, no
    # pixel of the left side, and 2 at either end of the right side (they are near the other's rows). So both ways.
    assert boundary(truth, square(14, 10))[1] == pytest.approx(20 / 36)
    assert boundary(truth, square(26, 26))[1] == 0


def test_boundary_as_written_in_plain_python() -> None:
    rng = np.random.default_rng(3)
    truth, predicted = (np.kron(rng.integers(0, 2, (5, 5)), np.ones((4, 4))).astype(np.uint16) for _ in range(2))

    def outline(mask: np.ndarray) -> list[tuple[int, int]]:
        side = len(mask)
        near = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        return [
            (y, x)
            for y, x in np.argwhere(mask)
            if any(0 <= y + a < side and 0 <= x + b < side and not mask[y + a, x + b] for a, b in near)
        ]

    def met(ours: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> float:
        return float(np.mean([any(max(abs(y - v), abs(x - u)) <= 2 for v, u in theirs) for y, x in ours]))

    for label, found in enumerate(boundary(truth, predicted)):
        true, guess = outline(truth == label), outline(predicted == label)
        precision, recall = met(guess, true), met(true, guess)
        assert found == pytest.approx(2 * precision * recall / (precision + recall))


def test_boundary_of_absent_ignored_and_missed_classes() -> None:
    whole = np.zeros((20, 20), np.uint16)
    assert np.isnan(boundary(whole, whole)).all()  # no outline anywhere: the edge of the image is none
    assert boundary(square(5, 5, 6, 20), whole)[1] == 0
    half = whole.copy()
    half[:, 10:] = IGNORE
    assert np.isnan(boundary(half, square(10, 0, 10, 20))).all()  # nor is the edge of what is ignored


def test_small_objects_are_looked_at_nearby_only() -> None:
    truth = square(10, 10, 6)
    predicted = truth.copy()
    predicted[10:16, 10] = 0  # 6 of 36 pixels missed
    predicted[12, 17:19] = 1  # 2 too many, within 4 px of the box
    predicted[30:40, 30:40] = 1  # far away
    small = SmallObjects(3)
    small.add(truth, predicted, [(1, (10, 10, 16, 16))])
    assert mean_of(small.ious()) == pytest.approx(30 / 38)
    assert small.objects == 1
    small.add(truth, np.zeros_like(truth), [(1, (10, 10, 16, 16))])
    assert mean_of(small.ious()) == pytest.approx(30 / (38 + 36))
    corner = SmallObjects(3)
    corner.add(square(0, 0, 3), square(0, 0, 3), [(1, (0, 0, 3, 3))])  # the widened box leaves the image
    assert mean_of(corner.ious()) == 1
