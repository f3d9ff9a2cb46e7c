"""What the CUDA entry points accept. Their results: test_cuda_results.py."""

import pytest

from kernels import cuda_api

COMPILED = bool(cuda_api.architectures())

PREPROCESS = {"photo": 8, "image": 512, "crops": 65536, "shape": (4, 5), "size": 32, "crop": 16, "stride": 8}
MERGE = {"crop_features": 8, "full_features": 0, "merged": 65536, "shape": (4, 36, 8), "stride": 4}
UPSAMPLE = {"logits": 8, "labels": 65536, "shape": (3, 4, 5), "size": (6, 7)}
CALLS = [(cuda_api.preprocess, PREPROCESS), (cuda_api.lga_merge, MERGE), (cuda_api.upsample_argmax, UPSAMPLE)]


class Recorder:
    """In place of the compiled module: notes the calls that pass the checks."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, arguments))


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(cuda_api, "_kernels_cuda", recorder)
    return recorder


@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_a_build_without_cuda_says_so(monkeypatch, function, arguments):
    monkeypatch.setattr(cuda_api, "_kernels_cuda", None)
    assert cuda_api.architectures() == [] and not cuda_api.available()
    with pytest.raises(RuntimeError, match="built without CUDA: reinstall"):
        function(**arguments)


@pytest.mark.skipif(not COMPILED, reason="kernels were built without CUDA")
@pytest.mark.skipif(cuda_api.available(), reason="there is a GPU")
@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_a_machine_without_a_gpu_says_so(function, arguments):
    with pytest.raises(RuntimeError, match="CUDA launch failed"):
        function(**arguments)


@pytest.mark.parametrize(
    ("function", "arguments", "text"),
    [
        (cuda_api.preprocess, {**PREPROCESS, "photo": 0}, "photo: got 0"),
        (cuda_api.preprocess, {**PREPROCESS, "photo": "x"}, "photo: got 'x', expected an integer"),
        (cuda_api.preprocess, {**PREPROCESS, "crops": 0}, "crops: got 0"),
        (cuda_api.preprocess, {**PREPROCESS, "pitch": 14}, "pitch: got 14, expected an integer from 15"),
        (cuda_api.preprocess, {**PREPROCESS, "crop": 33}, "crop: got 33"),
        (cuda_api.preprocess, {**PREPROCESS, "stride": 7}, "stride: got 7"),
        (cuda_api.preprocess, {**PREPROCESS, "color": "cmyk"}, 'color: got \'cmyk\', expected "rgb", "bgr"'),
        (cuda_api.preprocess, {**PREPROCESS, "color": ["rgb"]}, "color: got list"),
        (cuda_api.preprocess, {**PREPROCESS, "dtype": "int8"}, 'dtype: got \'int8\', expected "float32", "float16"'),
        (cuda_api.preprocess, {**PREPROCESS, "shape": 4}, "shape: got 4"),
        (cuda_api.preprocess, {**PREPROCESS, "shape": (4, 2**30)}, r"shape\[1\]: got 1073741824"),
        (cuda_api.preprocess, {**PREPROCESS, "image": 514}, "image: got 514, expected an address that is a multiple"),
        (cuda_api.preprocess, {**PREPROCESS, "image": 64}, "image: got memory that photo uses too"),
        (cuda_api.preprocess, {**PREPROCESS, "crops": 516}, "crops: got memory that image uses too"),
        (cuda_api.lga_merge, {**MERGE, "merged": 0}, "merged: got 0"),
        (cuda_api.lga_merge, {**MERGE, "merged": 8}, "merged: got memory that crop_features uses too"),
        (cuda_api.lga_merge, {**MERGE, "full_features": 65540}, "merged: got memory that full_features uses too"),
        (cuda_api.lga_merge, {**MERGE, "full_features": -4}, "full_features: got -4"),
        (cuda_api.lga_merge, {**MERGE, "shape": (3, 36, 8)}, r"crop_features.shape\[0\]: got 3"),
        (cuda_api.lga_merge, {**MERGE, "shape": (4, 36)}, r"shape: got \(4, 36\), expected \(n, g\*g, C\)"),
        (cuda_api.lga_merge, {**MERGE, "stride": 7}, "stride: got 7, expected at most g = 6"),
        (cuda_api.lga_merge, {**MERGE, "dtype": 16}, "dtype: got 16"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "shape": (0, 4, 5)}, r"shape\[0\]: got 0"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "shape": (65536, 4, 5)}, "logits: got 65536"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "size": (6, 0)}, r"size\[1\]: got 0"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "logits": 10}, "logits: got 10, expected an address"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "scores": 65540}, "scores: got memory that labels uses too"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "strides": (4, 5)}, r"strides\[0\]: got 4, expected an integer from 5"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "strides": 5}, "strides: got 5, expected .class stride, row stride"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "strides": (7, 6)}, r"strides: got \(7, 6\), expected \[0\] of 23 or"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "strides": (22, 6)}, r"strides: got \(22, 6\)"),
        (cuda_api.upsample_argmax, {**UPSAMPLE, "stream": -1}, "stream: got -1"),
    ],
)
def test_bad_input(recorder, function, arguments, text):
    with pytest.raises(ValueError, match=text):
        function(**arguments)
    assert recorder.calls == []


@pytest.mark.parametrize("strides", [(23, 6), (5, 15), (20, 5), (7, 19)])
def test_strides_that_keep_classes_apart(recorder, strides):
    cuda_api.upsample_argmax(**UPSAMPLE, strides=strides)
    assert len(recorder.calls) == 1


@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_good_input_is_launched_once(recorder, function, arguments):
    function(**arguments, stream=77)
    ((name, passed),) = recorder.calls
    assert name == function.__name__ and passed[-1] == 77
