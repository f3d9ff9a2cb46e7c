"""The CUDA kernels against kernels/reference.py: emulated on the CPU everywhere, and on the GPU where there is one."""

import ctypes
import itertools
import os

import ml_dtypes
import numpy as np
import pytest
from cuda_devices import POISON, EmulatedDevice, EmulatedKernels, Gpu, build_emulator

from kernels import cuda_api, reference

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ROUNDING = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # twice half a unit in the last place
SEED = int(os.environ.get("CUDA_TEST_SEED", np.random.SeedSequence().entropy % 2**32))  # fresh, and printed on failure


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    return build_emulator(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(params=["emulated", "gpu"])
def device(request, monkeypatch):
    if request.param == "emulated":
        monkeypatch.setattr(cuda_api, "_kernels_cuda", EmulatedKernels(request.getfixturevalue("emulator")))
        emulated = EmulatedDevice()
        yield emulated
        emulated.close()
        return
    if not cuda_api.available():
        pytest.skip("no GPU here" if cuda_api.architectures() else "kernels were built without CUDA")
    gpu = Gpu()
    yield gpu
    gpu.close()


@pytest.fixture
def rng(request):
    print(f"CUDA_TEST_SEED={SEED}")
    return np.random.default_rng([SEED, *request.node.name.encode()])


# ---- preprocess


def check_preprocess(
    device, rng, shape, geometry=(64, 32, 16), color="rgb", dtype="float32", padding=0, offset=0, antialias=False
):
    size, crop, stride = geometry
    pixel, red, step = cuda_api.COLORS[color]
    photo = rng.integers(0, 256, (*shape, pixel), dtype=np.uint8)
    rgb = np.ascontiguousarray(photo[..., [red, red + step, red + 2 * step]])
    expected = reference.preprocess(rgb, *geometry, antialias=antialias)
    padded = np.full((shape[0], pixel * shape[1] + padding), 255, np.uint8)
    padded[:, : pixel * shape[1]] = photo.reshape(shape[0], -1)
    source = device.upload(padded.reshape(-1)[: padded.size - padding], offset)  # the last row has no padding
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    outputs = [None if e is None else device.poisoned(e.shape, DTYPES[dtype], offset * itemsize) for e in expected]
    image, crops = (0 if output is None else output.address for output in outputs)
    cuda_api.preprocess(
        source.address,
        image,
        crops,
        shape=shape,
        size=size,
        crop=crop,
        stride=stride,
        color=color,
        antialias=antialias,
        pitch=padded.shape[1],
        dtype=dtype,
    )
    for output, wanted in zip(outputs, expected, strict=True):
        if output is not None:
            result = output.array().astype(np.float32)
            atol = 3e-5 if antialias else 1e-5  # sums of thousands of pixels, in another order
            np.testing.assert_allclose(result, wanted, rtol=ROUNDING[dtype], atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "geometry", [(64, 32, 16), (50, 30, 10), (72, 24, 8), (72, 64, 2), (33, None, 1), (264, 264, 8)]
)
def test_preprocess(device, rng, dtype, geometry):
    check_preprocess(device, rng, (83, 107), geometry, dtype=dtype)


@pytest.mark.parametrize("color", cuda_api.COLORS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (41, 640), (64, 64), (5, 6000)])  # the last is not staged
def test_preprocess_photos(device, rng, color, shape):
    for padding, offset in [(0, 0), (5, 9)]:
        check_preprocess(device, rng, shape, color=color, padding=padding, offset=offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (30, 40), (83, 107), (200, 31), (9, 16384), (700, 3), (500, 640)])
def test_preprocess_with_antialias(device, rng, dtype, shape):
    for geometry in [(64, 32, 16), (25, 15, 5), (3, None, 1), (1, None, 1)]:
        check_preprocess(device, rng, shape, geometry, dtype=dtype, antialias=True)


@pytest.mark.parametrize("color", cuda_api.COLORS)
def test_antialiased_photos(device, rng, color):
    for padding, offset in [(0, 0), (5, 9)]:
        check_preprocess(device, rng, (150, 211), color=color, padding=padding, offset=offset, antialias=True)


# ---- lga_merge


def expected_merge(crops, full, stride, dtype, normalize, channels_first):
    merged = reference.lga_merge(crops.astype(np.float32), None if full is None else full.astype(np.float32), stride)
    if normalize:
        merged = merged / np.maximum(np.linalg.norm(merged, axis=1, keepdims=True), 1e-12).astype(np.float32)
    return (merged.T if channels_first else merged).astype(DTYPES[dtype])


def check_merge(device, rng, per_axis, grid, stride, channels, dtype="float32", offset=0, with_full=True, **options):
    options = {"normalize": False, "channels_first": False, **options}
    crops = rng.standard_normal((per_axis**2, grid**2, channels), dtype=np.float32).astype(DTYPES[dtype])
    side = grid + (per_axis - 1) * stride
    full = rng.standard_normal((side**2, channels), dtype=np.float32).astype(DTYPES[dtype]) if with_full else None
    expected = expected_merge(crops, full, stride, dtype, **options)
    offset *= crops.itemsize
    source, whole = device.upload(crops, offset), None if full is None else device.upload(full, offset)
    merged = device.poisoned(expected.shape, expected.dtype, offset)
    cuda_api.lga_merge(
        source.address,
        0 if whole is None else whole.address,
        merged.address,
        shape=crops.shape,
        stride=stride,
        dtype=dtype,
        **options,
    )
    result = merged.array()
    if options["normalize"]:  # its sum has no defined order
        tolerance = {"rtol": 1e-6 + ROUNDING[dtype], "atol": 1e-7}
        np.testing.assert_allclose(result.astype(np.float32), expected.astype(np.float32), **tolerance)
    else:
        assert np.array_equal(result, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("channels_first", [False, True])
def test_lga_merge(device, rng, dtype, normalize, channels_first):
    options = {"dtype": dtype, "normalize": normalize, "channels_first": channels_first}
    check_merge(device, rng, 2, 6, 4, 96, **options)
    check_merge(device, rng, 2, 5, 3, 33, with_full=False, **options)
    check_merge(device, rng, 3, 6, 2, 64, offset=1, **options)
    check_merge(device, rng, 1, 3, 1, 1, **options)


@pytest.mark.parametrize(("per_axis", "grid", "stride"), [(3, 6, 2), (3, 6, 6), (4, 8, 2), (5, 5, 1), (1, 7, 9)])
def test_lga_merge_any_number_of_sources(device, rng, per_axis, grid, stride):
    for channels_first in (False, True):
        check_merge(device, rng, per_axis, grid, stride, 40, channels_first=channels_first)


@pytest.mark.parametrize("channels", [255, 257, 1028, 2056])  # several turns of a block
@pytest.mark.parametrize("channels_first", [False, True])
def test_lga_merge_many_channels(device, rng, channels, channels_first):
    for dtype, normalize in itertools.product(["float32", "float16"], [False, True]):
        check_merge(device, rng, 2, 2, 1, channels, dtype=dtype, normalize=normalize, channels_first=channels_first)


def test_a_token_of_zeros_stays_zeros(device):
    zeros = np.zeros((1, 4, 8), np.float32)
    source, merged = device.upload(zeros), device.poisoned((4, 8), np.float32)
    cuda_api.lga_merge(source.address, 0, merged.address, shape=zeros.shape, normalize=True)
    assert not merged.array().any()


# ---- upsample_argmax


def smooth(rng, classes, height, width):
    """Large regions with one clear winner each, as a model gives."""
    coarse = rng.standard_normal((classes, -(-height // 6) + 1, -(-width // 6) + 1), dtype=np.float32) * 4
    return reference._bilinear(coarse, (height, width))


def noise(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def ties(rng, *shape):
    return np.round(noise(rng, *shape))


def equal(rng, *shape):
    return np.full(shape, 0.1, np.float32)


def holes(rng, *shape):
    logits = np.round(noise(rng, *shape) * 8)
    logits[rng.random(shape) < 0.05] = np.nan
    logits[:, :2, :2] = np.nan
    return logits


def infinities(rng, *shape):
    logits = noise(rng, *shape)
    logits[rng.random(shape) < 0.1] = -np.inf
    logits[rng.random(shape) < 0.02] = np.inf
    logits[: shape[0] // 2] = -np.inf
    return logits


def masked(rng, *shape):
    return np.where(rng.random(shape) < 0.01, np.float32(np.nan), np.float32(-np.inf))


def tiny(rng, *shape):
    return np.round(noise(rng, *shape) * 8) * np.float32(1e-44)  # denormals


def huge(rng, *shape):
    return noise(rng, *shape).clip(-3, 3) * np.float32(1.1e38)


def close(rng, *shape):
    """Classes that differ by about the rounding of their blend: pruning must not decide between them."""
    return np.float32(1000) + np.float32(1.2e-4) * rng.integers(-2, 3, shape).astype(np.float32)


def check_argmax(device, rng, logits, size, dtype="float32", offset=0, strip_major=False, scores=True, **options):
    with np.errstate(over="ignore", invalid="ignore"):
        logits = logits.astype(DTYPES[dtype])
        labels, best = reference.upsample_argmax(logits.astype(np.float32), size, scores=True)
    classes, _, width = logits.shape
    stored = np.ascontiguousarray(logits.transpose(1, 0, 2)) if strip_major else logits
    source = device.upload(stored, offset * logits.itemsize)
    out = device.poisoned(labels.shape, labels.dtype, offset * labels.itemsize)
    values = device.poisoned(best.shape, best.dtype, offset * 4) if scores else None
    cuda_api.upsample_argmax(
        source.address,
        out.address,
        values.address if values else 0,
        shape=logits.shape,
        size=size,
        dtype=dtype,
        strides=(width, classes * width) if strip_major else None,
        **options,
    )
    assert np.array_equal(out.array(), labels)
    if values:
        assert np.array_equal(values.array(), best, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 20, 65, 150, 255, 256])
def test_upsample_argmax(device, rng, dtype, classes):
    check_argmax(device, rng, smooth(rng, classes, 10, 40), (40, 160), dtype)
    check_argmax(device, rng, smooth(rng, classes, 9, 37), (31, 83), dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", [noise, ties, equal, holes, infinities, masked, tiny, huge, close])
@pytest.mark.parametrize("prune", [True, False])
def test_upsample_argmax_of_any_logits(device, rng, kind, prune):
    for dtype in ["float32", "bfloat16"]:
        check_argmax(device, rng, kind(rng, 70, 9, 24), (36, 90), dtype, prune=prune)


@pytest.mark.parametrize(
    "size", [(1, 1), (3, 5), (9, 24), (18, 24), (9, 50), (200, 11), (23, 31), (144, 384), (160, 400), (300, 2)]
)
def test_upsample_argmax_sizes(device, rng, size):
    for kind in (smooth, ties):
        check_argmax(device, rng, kind(rng, 12, 9, 24), size, "float16")


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 9), (3, 9, 1), (5, 2, 2), (7, 4, 8), (7, 5, 33), (7, 13, 65)])
def test_upsample_argmax_shapes(device, rng, shape):
    size = shape[1] * 3, shape[2] * 4
    for offset, strip_major, dtype in itertools.product([0, 1], [False, True], ["float32", "float16"]):
        check_argmax(device, rng, ties(rng, *shape), size, dtype, offset, strip_major, scores=False)


@pytest.mark.parametrize(("between_classes", "between_rows"), [(1, 0), (0, 1), (8, 8), (3, 5)])
def test_upsample_argmax_of_padded_logits(device, rng, between_classes, between_rows):
    logits = ties(rng, 70, 6, 16)
    row = 16 + between_rows
    plane = 6 * row + between_classes
    padded = np.full((70, plane), np.inf, np.float32)
    padded[:, : 6 * row].reshape(70, 6, row)[..., :16] = logits
    source = device.upload(padded.reshape(-1)[: 69 * plane + 5 * row + 16])
    labels = device.poisoned((24, 64), np.uint8)
    cuda_api.upsample_argmax(source.address, labels.address, shape=logits.shape, size=(24, 64), strides=(plane, row))
    assert np.array_equal(labels.array(), reference.upsample_argmax(logits, (24, 64)))


def test_upsample_argmax_of_many_classes(device, rng):
    check_argmax(device, rng, smooth(rng, 847, 4, 16), (16, 64), "float16")
    check_argmax(device, rng, ties(rng, 4096, 2, 3), (8, 9))


@pytest.mark.parametrize("turn", range(40))
def test_anything(device, rng, turn):
    """Random shapes and options, one of each kernel a turn."""
    dtype, offset = str(rng.choice(list(DTYPES))), int(rng.integers(0, 2))
    stride, per_axis = int(rng.choice([1, 3, 4, 8])), int(rng.integers(1, 5))
    crop = stride * int(rng.integers(1, 6))
    check_preprocess(
        device,
        rng,
        tuple(rng.integers(1, 200, 2).tolist()),
        (crop + (per_axis - 1) * stride, crop, stride),
        str(rng.choice(list(cuda_api.COLORS))),
        dtype,
        int(rng.integers(0, 20)),
        offset,
        bool(rng.integers(0, 2)),
    )
    grid = int(rng.integers(1, 7))
    options = {name: bool(rng.integers(0, 2)) for name in ("normalize", "channels_first", "with_full")}
    channels = int(rng.choice([1, 8, 24, 77, 130]))
    check_merge(device, rng, per_axis, grid, int(rng.integers(1, grid + 1)), channels, dtype, offset, **options)

    kind = [smooth, noise, ties, holes, close][rng.integers(0, 5)]
    logits = kind(rng, int(rng.choice([1, 2, 63, 64, 65, 129])), *rng.integers(1, 20, 2).tolist())
    size = tuple(rng.integers(1, 60, 2).tolist())
    check_argmax(device, rng, logits, size, dtype, offset, bool(rng.integers(0, 2)))


# ---- streams and graphs


@pytest.mark.skipif(not cuda_api.available(), reason="no GPU here, or kernels were built without CUDA")
def test_a_captured_graph_of_all_three_runs_again_on_new_input():
    rng, gpu = np.random.default_rng(SEED), Gpu()
    photo = gpu.upload(np.zeros((90, 120, 3), np.uint8))
    image, crops = gpu.poisoned((1, 3, 64, 64), np.float32), gpu.poisoned((9, 3, 32, 32), np.float32)
    small = gpu.poisoned((1, 3, 24, 24), np.float32)
    features = rng.standard_normal((4, 36, 96), dtype=np.float32)
    tokens, merged = gpu.upload(features), gpu.poisoned((100, 96), np.float32)
    planes = smooth(rng, 20, 16, 16)
    logits, labels = gpu.upload(planes), gpu.poisoned((64, 64), np.uint8)

    def launch():
        geometry = {"size": 64, "crop": 32, "stride": 16}
        source = {"shape": (90, 120), "stream": gpu.stream}
        cuda_api.preprocess(photo.address, image.address, crops.address, **source, **geometry)
        cuda_api.preprocess(photo.address, small.address, 0, size=24, crop=None, antialias=True, **source)
        cuda_api.lga_merge(tokens.address, 0, merged.address, shape=features.shape, stride=4, stream=gpu.stream)
        cuda_api.upsample_argmax(logits.address, labels.address, shape=planes.shape, size=(64, 64), stream=gpu.stream)

    launch()  # loads the kernels, which a capture must not
    gpu.wait()
    for memory in (image, crops, small, merged, labels):
        gpu.write(memory.address, np.full(memory.array().nbytes, POISON, np.uint8))
    run = gpu.capture(launch)
    gpu.wait()
    assert np.isnan(image.array()).all()  # recorded, not run
    for _ in range(2):
        picture = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        gpu.write(photo.address, picture.reshape(-1))
        run()
        expected = reference.preprocess(picture, 64, 32, 16)
        np.testing.assert_allclose(image.array(), expected[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(crops.array(), expected[1], rtol=0, atol=1e-5)
        averaged = reference.preprocess(picture, 24, None, antialias=True)[0]
        np.testing.assert_allclose(small.array(), averaged, rtol=0, atol=1e-5)
        assert np.array_equal(merged.array(), reference.lga_merge(features, None, 4))
        assert np.array_equal(labels.array(), reference.upsample_argmax(planes, (64, 64)))
    gpu.close()


# ---- the arithmetic underneath, on the CPU


def test_index_arithmetic(emulator):
    sizes = [*range(1, 40), 63, 64, 65, 97, 160, 640, 720, 1080, 1920, 4097]
    wrong = [(i, o) for i, o in itertools.product(sizes, sizes) if emulator.check_axis(i, o)]
    assert wrong == []


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-3, 1.0, 1e4, 1e37])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0])
def test_no_blend_leaves_its_bounds(emulator, scale, spread):
    check = emulator.check_bounds
    check.argtypes = [ctypes.c_int, ctypes.c_float, ctypes.c_float, ctypes.c_uint]
    assert check(100_000, scale, spread, SEED) == 0
