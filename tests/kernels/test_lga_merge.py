"""lga_merge: compiled against reference and against torch's sum divided by a count map."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import reference


def random_features(seed: int, per_axis: int, crop_grid: int, stride: int, channels: int):
    rng = np.random.default_rng(seed)
    grid = crop_grid + (per_axis - 1) * stride
    crops = rng.standard_normal((per_axis**2, crop_grid**2, channels), dtype=np.float32)
    return crops, rng.standard_normal((grid**2, channels), dtype=np.float32)


def torch_merge(crops: np.ndarray, full: np.ndarray | None, per_axis: int, stride: int) -> np.ndarray:
    crop_grid, channels = int(crops.shape[1] ** 0.5), crops.shape[2]
    grid = crop_grid + (per_axis - 1) * stride
    total, count = torch.zeros(channels, grid, grid), torch.zeros(1, grid, grid)
    tiles = torch.from_numpy(crops).transpose(1, 2).unflatten(2, (crop_grid, crop_grid))
    corners = [(y * stride, x * stride) for y in range(per_axis) for x in range(per_axis)]
    for tile, (y, x) in zip(tiles, corners, strict=True):
        total[:, y : y + crop_grid, x : x + crop_grid] += tile
        count[:, y : y + crop_grid, x : x + crop_grid] += 1
    local = (total / count).flatten(1).T
    return (local if full is None else (local + torch.from_numpy(full)) / 2).numpy()


# per axis, crop grid, stride, channels: the two published readings first, then the odd ones
GEOMETRIES = [
    (2, 24, 16, 1024),
    (3, 24, 8, 1024),
    (1, 6, 16, 7),
    (2, 6, 4, 32),
    (2, 5, 5, 3),
    (3, 6, 2, 64),
    (5, 7, 1, 17),
    (4, 1, 1, 1),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("with_full", [True, False])
def test_equals_reference_and_torch(geometry, with_full):
    per_axis, _, stride, _ = geometry
    crops, full = random_features(hash(geometry) % 1000, *geometry)
    full = full if with_full else None
    merged = kernels.lga_merge(crops, full, stride)
    assert np.array_equal(merged, reference.lga_merge(crops, full, stride))
    np.testing.assert_allclose(merged, torch_merge(crops, full, per_axis, stride), rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    per_axis=st.integers(1, 4),
    crop_grid=st.integers(1, 7),
    stride=st.integers(1, 7),
    channels=st.integers(1, 19),
    with_full=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_geometry(per_axis, crop_grid, stride, channels, with_full, seed):
    stride = min(stride, crop_grid)
    crops, full = random_features(seed, per_axis, crop_grid, stride, channels)
    full = full if with_full else None
    merged = kernels.lga_merge(crops, full, stride)
    assert np.array_equal(merged, reference.lga_merge(crops, full, stride))


def test_the_whole_image_weighs_as_much_as_all_crops_together():
    crops, full = np.ones((4, 36, 2), np.float32), np.full((100, 2), 3, np.float32)
    assert np.all(kernels.lga_merge(crops, full, 4) == 2)


def test_crop_order_is_y_outer():
    crops = np.repeat(np.arange(4, dtype=np.float32), 4).reshape(4, 4, 1)
    merged = kernels.lga_merge(crops, None, 2).reshape(4, 4)
    assert merged[0, 3] == 1 and merged[3, 0] == 2


def test_without_crops_the_whole_image_is_copied():
    full = random_features(0, 2, 6, 4, 8)[1]
    merged = kernels.lga_merge(None, full)
    assert np.array_equal(merged, full) and not np.shares_memory(merged, full)
    assert np.array_equal(reference.lga_merge(None, full), full)


def test_nan_stays_where_it_is():
    crops, full = random_features(1, 2, 6, 4, 8)
    crops[0, 0] = np.nan
    merged = kernels.lga_merge(crops, full, 4)
    assert np.isnan(merged[0]).all() and np.isfinite(merged[1:]).all()


@pytest.mark.parametrize("geometry", [(2, 6, 4, 40), (3, 6, 2, 33), (5, 7, 1, 17)])
@pytest.mark.parametrize("with_full", [True, False])
def test_sixteen_bit_storage_is_rounded_once(geometry, with_full):
    """float32 inside: as the float32 result of the same numbers, rounded at the end."""
    crops, full = random_features(3, *geometry)
    full = full if with_full else None
    for bfloat16 in (False, True):
        narrow = reference._bfloat_bits if bfloat16 else (lambda array: array.astype(np.float16))
        stored = narrow(crops), None if full is None else narrow(full)
        merged = kernels.lga_merge(*stored, geometry[2], bfloat16=bfloat16)
        wide = [None if array is None else reference._as_floats(array, bfloat16) for array in stored]
        assert merged.dtype == stored[0].dtype
        assert np.array_equal(merged, narrow(kernels.lga_merge(*wide, geometry[2])))


def test_bfloat16_is_torchs():
    values = random_features(4, 2, 6, 4, 40)
    crops, full = (torch.from_numpy(array).to(torch.bfloat16) for array in values)
    bits = [tensor.view(torch.uint16).numpy() for tensor in (crops, full)]
    merged = torch.from_numpy(kernels.lga_merge(*bits, 4, bfloat16=True)).view(torch.bfloat16)
    expected = torch.from_numpy(kernels.lga_merge(crops.float().numpy(), full.float().numpy(), 4)).to(torch.bfloat16)
    assert torch.equal(merged, expected)


@pytest.mark.parametrize("channels", [2047, 2049, 5000])
@pytest.mark.parametrize("channels_first", [True, False])
def test_tokens_longer_than_a_block_of_scratch(channels, channels_first):
    crops, full = random_features(8, 2, 3, 2, channels)
    merged = kernels.lga_merge(crops, full, 2, channels_first=channels_first)
    expected = reference.lga_merge(crops, full, 2)
    assert np.array_equal(merged, expected.T if channels_first else expected)
    normal = kernels.lga_merge(crops, full, 2, channels_first=channels_first, normalize=True)
    lengths = np.linalg.norm(expected.astype(np.float64), axis=1, keepdims=True)
    expected = expected / lengths
    np.testing.assert_allclose(normal, expected.T if channels_first else expected, rtol=2e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES[2:])
def test_channels_first_is_the_transpose(geometry):
    crops, full = random_features(5, *geometry)
    merged = kernels.lga_merge(crops, full, geometry[2])
    assert np.array_equal(kernels.lga_merge(crops, full, geometry[2], channels_first=True), merged.T)
    only = kernels.lga_merge(None, full, channels_first=True)
    assert only.flags.c_contiguous and np.array_equal(only, full.T)


@pytest.mark.parametrize("channels_first", [True, False])
def test_normalize_is_torchs(channels_first):
    crops, full = random_features(6, 3, 6, 2, 37)
    crops[:, 0], full[0] = 0, 0  # a token of length 0 stays 0
    merged = kernels.lga_merge(crops, full, 2, normalize=True, channels_first=channels_first)
    plain = torch.from_numpy(kernels.lga_merge(crops, full, 2))
    expected = torch.nn.functional.normalize(plain, dim=1).numpy()
    np.testing.assert_allclose(merged, expected.T if channels_first else expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_results_larger_than_the_caches(shift, dtype):
    """These are written past the caches, in whole lines; what is left at either end is not."""
    side, channels = (72, 1001) if dtype == np.float16 else (56, 801)
    crops, full = (array.astype(dtype) for array in random_features(7, 2, side - 8, 8, channels))
    memory = np.full(full.size + 64, 7, dtype)
    out = memory[shift : shift + full.size].reshape(full.shape)
    assert out.nbytes > 8 << 20
    kernels.lga_merge(crops, full, 8, out=out)
    assert np.array_equal(out, reference.lga_merge(crops, full, 8))
    assert np.all(memory[:shift] == 7) and np.all(memory[shift + full.size :] == 7)
