"""Frames on a fake device through ONNX Runtime's CUDA engines, which launch graphs of their own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_pipelines import Made, frames, host_pipeline, kernels_on_device, same, text_of  # noqa: F401 (fixtures)
from fake_cuda import Buffer, Graph, Stream
from fake_onnxruntime import Session
from small_models import CLASSES, random_photo
from test_onnxruntime_cuda import provider  # noqa: F401 (fixtures)
from test_tensorrt import device  # noqa: F401 (fixtures)

from kernels import cuda_api
from runtime.bundle import Bundle
from runtime.cuda.pipeline import CudaPipeline
from runtime.engines import open_on_device
from runtime.errors import EngineError
from runtime.segmenter import TEXT_STAGE, Segmenter


@pytest.fixture(params=["late", "early"])
def made(
    request: pytest.FixtureRequest,
    small_bundle: Path,
    provider: None,  # noqa: F811
    kernels_on_device: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Made]:
    """The pipeline in question, of two workers, and the host's on the same graphs. None of them says a word."""
    monkeypatch.setattr(Stream, "early", request.param == "early")
    bundle = Bundle.open(small_bundle)
    stages = [stage.name for stage in bundle.manifest.stages if stage.name != TEXT_STAGE]
    before = set(Buffer.live)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engines = {stage: open_on_device(bundle, stage, "onnxruntime-cuda", "fp16", None) for stage in stages}
        found = CudaPipeline(bundle, engines, workers=2)
        yield found, host_pipeline(bundle)
        found.close()
        found.close()
    assert set(Buffer.live) == before  # everything is freed, once


def test_frames_are_those_of_the_host(made: Made) -> None:
    """The engines' graphs are replayed, there is none around them."""
    text = text_of(5)
    for seed in range(4):
        same(made, random_photo(seed=seed), text)
    assert Graph.live == 0
    assert all(session.replays for session in Session.opened)


def test_more_classes_than_are_decoded_at_once(made: Made) -> None:
    for seed in range(2):
        same(made, random_photo(seed=seed), text_of(70, seed))


def test_workers_share_sessions(made: Made) -> None:
    """Frames at once, with different numbers of classes: none gets another's result."""
    jobs = [(random_photo(seed=seed), text_of(4 + 40 * (seed % 2), seed)) for seed in range(6)]
    with ThreadPoolExecutor(3) as callers:
        found = list(callers.map(lambda job: made[0](*job), jobs))
    for (photo, text), result in zip(jobs, found, strict=True):
        expected = made[1](photo, text)
        assert np.mean(result.labels == expected.labels) > 0.999
        np.testing.assert_allclose(result.scores, expected.scores, rtol=0, atol=1e-5)
    assert len(Session.opened) == len(made[0].engines)


def test_through_the_host(made: Made) -> None:
    """An order of the stages that computes in NumPy between two of them runs the same engines."""
    bundle = made[0]._bundle
    spec = bundle.manifest.pipeline.model_copy(update={"pad_len": 3})
    made[0]._bundle = Bundle(bundle.root, bundle.manifest.model_copy(update={"pipeline": spec}))
    made[1].spec = spec
    same(made, random_photo(), text_of(5))
    assert not frames(made[0])


def test_a_frame_that_fails(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller learns the stage; the next frame is right."""
    text = text_of(4)
    same(made, random_photo(), text)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "fails", True)
        patch.setattr(warnings, "warn", lambda *args, **options: None)
        with pytest.raises(EngineError, match=r"stage \w+: ONNX Runtime failed: CUDA failure 700"):
            made[0](random_photo(), text)
    same(made, random_photo(seed=1), text)


@pytest.mark.parametrize("kernels", [True, False])
def test_the_segmenter_uses_it(
    kernels: bool,
    small_bundle: Path,
    provider: None,  # noqa: F811
    kernels_on_device: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without our kernels for the GPU host arrays go between the engines."""
    if not kernels:
        monkeypatch.setattr(cuda_api, "_kernels_cuda", None)
    options: dict[str, Any] = {"precision": "fp16", "cache_dir": None}
    with pytest.warns(UserWarning, match="random weights"):
        expected = Segmenter.load(small_bundle, CLASSES, backend="onnxruntime", **options)
        found = Segmenter.load(small_bundle, CLASSES, backend="onnxruntime-cuda", **options)
    with expected, found:
        for seed in range(2):
            photo = random_photo(seed=seed)
            result = found(photo)
            assert ("device" in result.timings) == kernels
            assert np.mean(result.labels == expected(photo).labels) > 0.999
        assert found.precision["backbone"] == "fp16"
