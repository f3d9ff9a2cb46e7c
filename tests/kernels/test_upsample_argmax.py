"""upsample_argmax: compiled against reference (bit by bit) and torch (where the winner is clear)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import reference


def random_logits(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_equals_reference(logits: np.ndarray, size: tuple[int, int]) -> None:
    labels, scores = kernels.upsample_argmax(logits, size, scores=True)
    expected_labels, expected_scores = reference.upsample_argmax(logits, size, scores=True)
    assert labels.dtype == expected_labels.dtype and labels.shape == size == scores.shape
    assert scores.dtype == np.float32
    assert np.array_equal(labels, expected_labels)
    assert np.array_equal(scores, expected_scores, equal_nan=True)
    assert np.array_equal(kernels.upsample_argmax(logits, size), labels)


def assert_equals_torch(logits: np.ndarray, size: tuple[int, int]) -> None:
    labels, scores = kernels.upsample_argmax(logits, size, scores=True)
    upsampled = F.interpolate(torch.from_numpy(logits)[None], size=size, mode="bilinear", align_corners=False)[0]
    best, expected = (array.numpy() for array in upsampled.max(dim=0))
    np.testing.assert_allclose(scores, best, rtol=0, atol=2e-6)
    differs = labels != expected
    assert differs.mean() < 1e-4
    # Where torch names another class, ours is as high by torch's own count, but for rounding.
    chosen = upsampled.gather(0, torch.from_numpy(labels.astype(np.int64))[None])[0].numpy()
    assert np.all(best[differs] - chosen[differs] < 2e-6)


CASES = [
    ((1, 1, 1), (1, 1)),
    ((1, 8, 9), (20, 31)),
    ((3, 1, 1), (5, 7)),
    ((5, 16, 16), (16, 16)),
    ((20, 40, 40), (83, 107)),
    ((7, 40, 40), (190, 77)),
    ((7, 50, 60), (13, 11)),
    ((4, 9, 9000), (7, 1100)),  # wider than two tiles, shrinking more than the blended span allows
    ((4, 9, 1500), (7, 2100)),
    ((3, 20, 20), (10000, 30)),
    ((3, 20, 20), (30, 10000)),
    ((2, 3000, 2), (5, 5)),
    ((255, 10, 10), (33, 35)),
    ((256, 10, 10), (33, 35)),
    ((300, 10, 10), (33, 35)),
    ((1000, 10, 10), (33, 35)),
]


@pytest.mark.parametrize(("shape", "size"), CASES)
def test_equals_reference_and_torch(shape, size):
    logits = random_logits(sum(shape), *shape)
    assert_equals_reference(logits, size)
    assert_equals_torch(logits, size)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 30), st.integers(1, 30)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    levels=st.sampled_from([0, 2, 5]),
    holes=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_with_ties_and_nan(shape, size, levels, holes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(shape, dtype=np.float32)
    if levels:  # few distinct values: exact ties everywhere
        logits = np.round(logits * levels).astype(np.float32)
    logits[rng.random(shape) < holes] = np.nan
    assert_equals_reference(logits, size)


@pytest.mark.parametrize(("classes", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_label_type_is_as_small_as_the_classes_allow(classes, dtype):
    logits = np.zeros((classes, 2, 2), np.float32)
    logits[-1] = 1
    labels = kernels.upsample_argmax(logits, (3, 3))
    assert labels.dtype == dtype and np.all(labels == classes - 1)


def test_the_most_classes():
    logits = np.zeros((65535, 1, 1), np.float32)
    logits[-1] = 1
    assert kernels.upsample_argmax(logits, (2, 2)).tolist() == [[65534] * 2] * 2


def test_the_lower_class_wins_a_tie():
    logits = random_logits(1, 1, 6, 6).repeat(4, axis=0)
    assert not kernels.upsample_argmax(logits, (17, 19)).any()


@pytest.mark.parametrize(
    ("values", "label", "score"),
    [
        ([np.nan, np.nan], 0, np.nan),
        ([np.nan, -5.0], 1, -5.0),
        ([-5.0, np.nan], 0, -5.0),
        ([-0.0, 0.0], 0, 0.0),
        ([-np.inf, -5.0], 1, -5.0),
        ([-np.inf, -np.inf], 0, np.nan),  # weight 0 times infinity is NaN, as in torch
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_special_values(values, label, score):
    logits = np.array(values, np.float32).reshape(-1, 1, 1)
    for function in (kernels.upsample_argmax, reference.upsample_argmax):
        labels, scores = function(logits, (1, 1), scores=True)
        assert labels[0, 0] == label
        np.testing.assert_array_equal(scores[0, 0], score)


def test_dropped_classes_never_show():
    """CAT-Seg writes -100 for classes beyond its limit."""
    logits = random_logits(2, 20, 12, 12)
    logits[[3, 8]] = -100
    assert not np.isin(kernels.upsample_argmax(logits, (50, 50)), [3, 8]).any()


@pytest.mark.parametrize("size", [(720, 1280), (640, 640)])
def test_full_size(size):
    assert_equals_torch(random_logits(5, 20, 160, 160), size)


def smooth_logits(seed: int, classes: int, side: int = 160) -> np.ndarray:
    """As a decoder's: each class a few broad hills."""
    hills = torch.from_numpy(random_logits(seed, 1, classes, side // 8, side // 8))
    return F.interpolate(hills, size=(side, side), mode="bicubic")[0].contiguous().numpy()


@pytest.mark.parametrize("classes", [8, 20, 150, 847])
def test_smooth_logits_full_size(classes):
    logits = smooth_logits(6, classes)
    assert_equals_torch(logits, (640, 640))
    direct = np.empty((640, 640), np.uint8 if classes <= 255 else np.uint16)
    kernels._kernels.upsample_argmax(logits, 0, direct, None, prune=False)
    assert np.array_equal(direct, kernels.upsample_argmax(logits, (640, 640)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
@pytest.mark.parametrize("share", [0.001, 0.2])
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_pruning_is_exact_around_what_is_not_finite(value, share):
    logits = smooth_logits(7, 40, side=48)
    logits[np.random.default_rng(7).random(logits.shape) < share] = value
    assert_equals_reference(logits, (190, 200))


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1.0, 1e30])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_pruning_leaves_near_ties_in(scale, offset):
    """Classes that differ by a few units in the last place, about where bounds of a careless kernel would cut."""
    base = smooth_logits(8, 1, side=40)
    steps = np.random.default_rng(8).integers(-3, 4, (30, 40, 40)).astype(np.float32)
    logits = ((base + np.float32(offset)) * (1 + steps * np.float32(6e-8)) * np.float32(scale)).astype(np.float32)
    assert_equals_reference(logits, (155, 161))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_sixteen_bit_logits(bfloat16):
    logits = smooth_logits(9, 30, side=40)
    stored = reference._bfloat_bits(logits) if bfloat16 else logits.astype(np.float16)
    given = kernels.upsample_argmax(stored, (150, 133), scores=True, bfloat16=bfloat16)
    expected = kernels.upsample_argmax(reference._as_floats(stored, bfloat16), (150, 133), scores=True)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(given, expected, strict=True))


def test_strips_are_read_in_place():
    logits = smooth_logits(10, 30, side=40)
    strips = np.ascontiguousarray(logits.transpose(1, 0, 2))
    given = kernels.upsample_argmax(strips.transpose(1, 0, 2), (99, 101))
    assert np.array_equal(given, kernels.upsample_argmax(logits, (99, 101)))


def test_4096_classes():
    assert_equals_reference(random_logits(11, 4096, 3, 9), (5, 40))
