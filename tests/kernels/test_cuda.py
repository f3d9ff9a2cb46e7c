"""The CUDA twins. Wrong arguments are tested everywhere; results only where there is a GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernels
from kernels import cuda_api, reference

COMPILED = bool(kernels.build_info()["cuda_architectures"])
needs_build = pytest.mark.skipif(not COMPILED, reason="kernels were built without CUDA")
needs_gpu = pytest.mark.skipif(
    not cuda_api.available(), reason="no GPU here" if COMPILED else "kernels were built without CUDA"
)

PREPROCESS = {"photo": 8, "image": 8, "crops": 8, "shape": (4, 5), "size": 32, "crop": 16, "stride": 8}
MERGE = {"crop_features": 8, "full_features": 0, "merged": 8, "shape": (4, 36, 8), "stride": 4}
UPSAMPLE = {"logits": 8, "labels": 8, "shape": (3, 4, 5), "size": (6, 7)}
CALLS = [(cuda_api.preprocess, PREPROCESS), (cuda_api.lga_merge, MERGE), (cuda_api.upsample_argmax, UPSAMPLE)]


@pytest.mark.skipif(COMPILED, reason="kernels were built with CUDA")
@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_a_build_without_cuda_says_so(function, arguments):
    assert not cuda_api.available()
    with pytest.raises(RuntimeError, match="built without CUDA"):
        function(**arguments)


@pytest.mark.skipif(not COMPILED or cuda_api.available(), reason="needs a CUDA build on a machine with no GPU")
@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_a_machine_without_a_gpu_says_so(function, arguments):
    with pytest.raises(RuntimeError, match="CUDA launch failed"):
        function(**arguments)


@needs_build
@pytest.mark.parametrize(
    ("function", "arguments", "text"),
    [
        (cuda_api.preprocess, {**PREPROCESS, "photo": 0}, "photo: got 0"),
        (cuda_api.preprocess, {**PREPROCESS, "crops": 0}, "crops: got 0"),
        (cuda_api.preprocess, {**PREPROCESS, "pitch": 14}, "pitch: got 14, expected an integer from 15"),
        (cuda_api.preprocess, {**PREPROCESS, "crop": 33}, "crop: got 33"),
        (cuda_api.preprocess, {**PREPROCESS, "stride": 7}, "stride: got 7"),
        (cuda_api.preprocess, {**PREPROCESS, "color": "grey"}, "color: got 'grey'"),
        (cuda_api.preprocess, {**PREPROCESS, "shape": 4}, "shape: got 4"),
        (cuda_api.lga_merge, {**MERGE, "merged": 0}, "merged: got 0"),
        (cuda_api.lga_merge, {**MERGE, "shape": (3, 36, 8)}, r"crop_features.shape\[0\]: got 3"),
        (cuda_api.lga_merge, {**MERGE, "stride": 7}, "stride: got 7, expected at most g = 6"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "shape": (0, 4, 5)}, r"shape\[0\]: got 0"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "shape": (65536, 4, 5)}, "logits: got 65536"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "size": (6, 0)}, r"size\[1\]: got 0"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "stream": -1}, "stream: got -1"),
    ],
)
def test_bad_input(function, arguments, text):
    with pytest.raises(ValueError, match=text):
        function(**arguments)


class Device:
    """Arrays on the GPU by whichever library is there: cupy, or torch built with CUDA."""

    def __init__(self) -> None:
        self.upload: Callable[[np.ndarray], Any]
        self.download: Callable[[Any], np.ndarray]
        self.address: Callable[[Any], int]
        try:
            import cupy

            self.upload, self.download, self.address = cupy.asarray, cupy.asnumpy, lambda a: a.data.ptr
        except ImportError:
            torch = pytest.importorskip("torch")
            if not torch.cuda.is_available():
                pytest.skip("neither cupy nor a torch with CUDA is installed")
            self.upload = lambda a: torch.from_numpy(a).cuda()
            self.download = lambda a: a.cpu().numpy()
            self.address = lambda a: a.data_ptr()


@pytest.fixture
def device() -> Device:
    return Device()


@needs_gpu
@pytest.mark.parametrize("shape", [(1, 1), (83, 107), (1080, 1920)])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("geometry", [(160, 96, 32), (64, None, 1)])
def test_preprocess(device, shape, color, geometry):
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    size, crop, stride = geometry
    expected = reference.preprocess(photo, size, crop, stride, color)
    padded = np.zeros((shape[0], 3 * shape[1] + 5), np.uint8)  # a row pitch, as decoders give
    padded[:, : 3 * shape[1]] = photo.reshape(shape[0], -1)
    source, image = device.upload(padded), device.upload(np.zeros_like(expected[0]))
    crops = None if crop is None else device.upload(np.zeros_like(expected[1]))
    cuda_api.preprocess(
        device.address(source),
        device.address(image),
        0 if crops is None else device.address(crops),
        shape=shape,
        size=size,
        crop=crop,
        stride=stride,
        color=color,
        pitch=padded.shape[1],
    )
    np.testing.assert_allclose(device.download(image), expected[0], rtol=0, atol=1e-5)
    if crops is not None:
        np.testing.assert_allclose(device.download(crops), expected[1], rtol=0, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize(("count", "crop_grid", "stride"), [(1, 6, 1), (4, 24, 16), (9, 24, 8)])
@pytest.mark.parametrize("with_full", [True, False])
def test_lga_merge(device, count, crop_grid, stride, with_full):
    rng = np.random.default_rng(1)
    crops = rng.standard_normal((count, crop_grid**2, 96), dtype=np.float32)
    local = reference.lga_merge(crops, None, stride)
    full = rng.standard_normal(local.shape, dtype=np.float32)
    expected = reference.lga_merge(crops, full, stride) if with_full else local
    on_device = device.upload(crops), device.upload(full), device.upload(np.zeros_like(expected))
    source, whole, merged = map(device.address, on_device)
    cuda_api.lga_merge(source, whole if with_full else 0, merged, shape=crops.shape, stride=stride)
    assert np.array_equal(device.download(on_device[2]), expected)


@needs_gpu
@pytest.mark.parametrize("classes", [1, 20, 255, 256])
@pytest.mark.parametrize("size", [(1, 1), (83, 107), (720, 1280)])
def test_upsample_argmax(device, classes, size):
    rng = np.random.default_rng(2)
    logits = np.round(rng.standard_normal((classes, 40, 40), dtype=np.float32) * 8)  # with ties
    logits[rng.random(logits.shape) < 0.05] = np.nan
    labels, scores = reference.upsample_argmax(logits, size, scores=True)
    as_signed = labels.view(np.int8 if labels.dtype == np.uint8 else np.int16)  # every torch has these
    on_device = (
        device.upload(logits),
        device.upload(np.zeros_like(as_signed)),
        device.upload(np.zeros_like(scores)),
    )
    cuda_api.upsample_argmax(*map(device.address, on_device), shape=logits.shape, size=size)
    assert np.array_equal(device.download(on_device[1]), as_signed)
    assert np.array_equal(device.download(on_device[2]), scores, equal_nan=True)
