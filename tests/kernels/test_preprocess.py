"""preprocess: compiled against reference and torch, over every way a photo can lie in memory."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import checks, reference

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def random_photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def torch_preprocess(photo: np.ndarray, size: int, antialias: bool = False) -> np.ndarray:
    planes = torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias)
    return ((resized / 255 - MEAN) / STD).numpy()


ROUNDING = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # twice half a unit in the last place


def assert_same(given_, expected, dtype: str = "float32") -> None:
    for ours, theirs in zip(given_, expected, strict=True):
        assert ours.dtype == theirs.dtype == (np.uint16 if dtype == "bfloat16" else np.dtype(dtype))
        values = (reference._as_floats(array, dtype == "bfloat16") for array in (ours, theirs))
        np.testing.assert_allclose(*values, rtol=ROUNDING[dtype], atol=1e-5)


SHAPES = [(1, 1), (1, 7), (83, 107), (190, 77), (480, 640), (1080, 1920), (10000, 30), (30, 10000)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("geometry", [(160, 96, 64), (160, 96, 32), (97, 97, 5), (64, None, 1)])
def test_equals_reference(shape, geometry):
    photo = random_photo(np.random.default_rng(hash(shape) % 1000), *shape)
    size, crop, stride = geometry
    image, crops = kernels.preprocess(photo, size, crop, stride)
    expected_image, expected_crops = reference.preprocess(photo, size, crop, stride)
    assert image.shape == (1, 3, size, size)
    if crop is None:
        assert crops is None and expected_crops is None
        assert_same([image], [expected_image])
    else:
        assert crops.shape == (((size - crop) // stride + 1) ** 2, 3, crop, crop)
        assert_same([image, crops], [expected_image, expected_crops])


@pytest.mark.parametrize("shape", [*SHAPES, (2160, 3840), (1001, 7777)])
def test_equals_torch(shape):
    photo = random_photo(np.random.default_rng(7), *shape)
    image, _ = kernels.preprocess(photo, 640, None)
    assert_same([image], [torch_preprocess(photo, 640)])


def test_8k_photo():
    photo = random_photo(np.random.default_rng(8), 4320, 7680)
    assert_same([kernels.preprocess(photo, 96, None)[0]], [torch_preprocess(photo, 96)])


def test_crops_are_cut_from_the_image_y_outer():
    image, crops = kernels.preprocess(random_photo(np.random.default_rng(1), 50, 70), 160, 96, 64)
    offsets = [(y, x) for y in (0, 64) for x in (0, 64)]
    for crop, (y, x) in zip(crops, offsets, strict=True):
        assert np.array_equal(crop, image[0, :, y : y + 96, x : x + 96])


VIEWS = {
    "upside down": lambda p: p[::-1],
    "mirrored": lambda p: p[:, ::-1],
    "channels reversed": lambda p: p[..., ::-1],
    "all reversed": lambda p: p[::-1, ::-1, ::-1],
    "every other": lambda p: p[::2, 1::3],
    "window": lambda p: p[5:41, 7:50],
    "transposed": lambda p: p.transpose(1, 0, 2),
    "planar": lambda p: np.ascontiguousarray(p.transpose(2, 0, 1)).transpose(1, 2, 0),
    "of RGBA": lambda p: np.concatenate([p, p[..., :1]], axis=2)[..., :3],
    "broadcast grey": lambda p: np.broadcast_to(p[..., :1], p.shape),
    "one row repeated": lambda p: np.broadcast_to(p[:1], p.shape),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_views_are_read_in_place(name, color):
    view = VIEWS[name](random_photo(np.random.default_rng(2), 60, 80))
    copy = np.ascontiguousarray(view)
    before = copy.copy()
    ours = kernels.preprocess(view, 64, 32, 16, color)
    assert_same(ours, kernels.preprocess(copy, 64, 32, 16, color))
    assert_same(ours, reference.preprocess(view, 64, 32, 16, color))
    assert np.array_equal(view, before)


def test_bgr_is_rgb_with_the_channels_swapped():
    photo = random_photo(np.random.default_rng(3), 20, 30)
    assert_same(kernels.preprocess(photo, 32, 16, 16, "bgr"), kernels.preprocess(photo[..., ::-1], 32, 16, 16))


def test_read_only_photo():
    photo = random_photo(np.random.default_rng(4), 20, 30)
    expected = kernels.preprocess(photo, 32, 16, 16)
    photo.flags.writeable = False
    assert_same(kernels.preprocess(photo, 32, 16, 16), expected)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop=st.integers(1, 40),
    stride=st.integers(1, 20),
    extra=st.integers(0, 3),
    steps=st.tuples(*[st.sampled_from([-3, -2, -1, 1, 2, 3])] * 2),
    color=st.sampled_from(["rgb", "bgr"]),
    options=st.fixed_dictionaries({"antialias": st.booleans(), "dtype": st.sampled_from(list(ROUNDING))}),
    seed=st.integers(0, 2**31),
)
def test_any_geometry(height, width, crop, stride, extra, steps, color, options, seed):
    photo = random_photo(np.random.default_rng(seed), height, width)[:: steps[0], :: steps[1]]
    size = crop + extra * stride
    assert_same(
        kernels.preprocess(photo, size, crop, stride, color, **options),
        reference.preprocess(photo, size, crop, stride, color, **options),
        options["dtype"],
    )


def test_a_single_colour_stays_single():
    photo = np.full((37, 53, 3), 255, np.uint8)
    image, _ = kernels.preprocess(photo, 48, None)
    np.testing.assert_allclose(image[0], ((1 - MEAN) / STD).expand(3, 48, 48), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(30, 40), (64, 200), (200, 64), (480, 640), (1080, 1920), (999, 1501)])
def test_antialias_is_torchs(shape):
    photo = random_photo(np.random.default_rng(9), *shape)
    image, crops = kernels.preprocess(photo, 64, 32, 16, antialias=True)
    np.testing.assert_allclose(image, torch_preprocess(photo, 64, antialias=True), rtol=0, atol=1e-4)
    assert_same((image, crops), reference.preprocess(photo, 64, 32, 16, antialias=True))


def test_antialias_averages_what_sampling_would_miss():
    photo = np.zeros((512, 512, 3), np.uint8)
    photo[::8] = 255  # one row in eight
    sampled, averaged = (kernels.preprocess(photo, 64, None, antialias=on)[0][0, 0] for on in (False, True))
    assert np.ptp(sampled) == 0  # every sample falls between the lines
    np.testing.assert_allclose(averaged[1:-1] * 0.229 + 0.485, 1 / 8, atol=0.02)


def test_grey():
    grey = random_photo(np.random.default_rng(10), 37, 53)[..., 0]
    expected = kernels.preprocess(np.repeat(grey[..., None], 3, axis=2), 48, 32, 16)
    assert_same(kernels.preprocess(grey, 48, 32, 16, "grey"), expected)
    assert_same(
        kernels.preprocess(grey[::-1, ::2], 48, 32, 16, "grey"),
        reference.preprocess(grey[::-1, ::2], 48, 32, 16, "grey"),
    )


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [1, 63, 97, 160])
def test_sixteen_bit_results_are_rounded_once(size, antialias):
    """float32 inside: as the float32 result, rounded at the end."""
    photo = random_photo(np.random.default_rng(12), 83, 211)
    arguments = (photo, size, (size + 1) // 2, max(size // 2, 1))
    wide = kernels.preprocess(*arguments, antialias=antialias)
    halves = kernels.preprocess(*arguments, antialias=antialias, dtype="float16")
    bits = kernels.preprocess(*arguments, antialias=antialias, dtype="bfloat16")
    for single, half, short in zip(wide, halves, bits, strict=True):
        assert half.dtype == np.float16 and np.array_equal(half, single.astype(np.float16))
        assert torch.equal(torch.from_numpy(short).view(torch.bfloat16), torch.from_numpy(single).to(torch.bfloat16))


@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_results_larger_than_the_caches(shift, dtype):
    photo = random_photo(np.random.default_rng(11), 300, 400)
    size, crop = (801, 401) if dtype == "float32" else (1001, 501)
    shapes, element = ((1, 3, size, size), (4, 3, crop, crop)), checks.element_dtype(dtype)
    memory = [np.full(math.prod(shape) + 64, 7, element) for shape in shapes]
    out = tuple(m[shift : m.size - 64 + shift].reshape(shape) for m, shape in zip(memory, shapes, strict=True))
    assert sum(array.nbytes for array in out) > 8 << 20
    kernels.preprocess(photo, size, crop, crop - 1, out=out, dtype=dtype)
    assert_same(out, reference.preprocess(photo, size, crop, crop - 1, dtype=dtype), dtype)
    assert all(np.all(m[:shift] == 7) and np.all(m[m.size - 64 + shift :] == 7) for m in memory)
