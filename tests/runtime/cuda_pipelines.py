"""What the tests of the GPU pipeline share: the pipeline on a fake device beside the host's on the same graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fake_cuda
import fake_kernels
import numpy as np
import pytest
from fake_cuda import Buffer, Graph, Stream
from test_tensorrt import device, on_device, one_logger_a_test  # noqa: F401 (fixtures)

import runtime.cuda.device
from kernels import cuda_api
from runtime.bundle import Bundle
from runtime.cuda import budget
from runtime.cuda.frame import Frame
from runtime.cuda.pipeline import CudaPipeline
from runtime.engines import open_stage
from runtime.engines.tensorrt import OpenEngine
from runtime.engines.tensorrt_library import Library
from runtime.pipeline import Pipeline
from runtime.segmenter import TEXT_STAGE

Made = tuple[CudaPipeline, Pipeline]
STREAMS = 5  # of a worker; its first is its main one


@pytest.fixture
def kernels_on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our kernels, and streams of which all but a worker's first run as early as they can."""
    monkeypatch.setattr(cuda_api, "_kernels_cuda", fake_kernels)
    monkeypatch.setattr(budget, "free_memory", lambda: 8 << 30)

    def streams_of_a_worker(self: Any) -> Stream:
        number = self.__dict__.setdefault("made", 0)
        self.made = number + 1
        return Stream() if number == 0 or number % STREAMS == 1 else fake_cuda.side_stream()

    monkeypatch.setattr(runtime.cuda.device.Device, "stream", streams_of_a_worker)


@pytest.fixture(params=["late", "early"])
def made(
    request: pytest.FixtureRequest,
    on_device: tuple[Bundle, Library],  # noqa: F811
    kernels_on_device: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Made]:
    """The pipeline in question, and the host's on the same graphs."""
    monkeypatch.setattr(Stream, "early", request.param == "early")
    bundle, library = on_device
    before = set(Buffer.live)
    found = CudaPipeline(bundle, engines(bundle, library))
    yield found, host_pipeline(bundle)
    found.close()
    found.close()
    assert set(Buffer.live) == before  # everything is freed, once
    assert Graph.live == 0


def host_pipeline(bundle: Bundle) -> Pipeline:
    stages = [stage.name for stage in bundle.manifest.stages if stage.name != TEXT_STAGE]
    host = {name: open_stage(bundle, name, "onnxruntime", "fp16", 1) for name in stages}
    return Pipeline(bundle.manifest.pipeline, host)


def engines(bundle: Bundle, library: Library) -> dict[str, OpenEngine]:
    return {
        entry.key.stage: OpenEngine(library, bundle.root, entry)
        for entry in bundle.manifest.engines
        if entry.key.stage != TEXT_STAGE
    }


def text_of(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, 2, 192)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def same(made: Made, photo: np.ndarray, text: np.ndarray, **options: Any) -> None:
    """Up to the order of sums over a filled-up batch of classes."""
    found, host = made[0](photo, text, **options), made[1](photo, text, **options)
    assert found.labels.dtype == host.labels.dtype
    assert np.mean(found.labels == host.labels) > 0.999
    assert (found.scores is None) == (host.scores is None)
    if host.scores is not None:
        np.testing.assert_allclose(found.scores, host.scores, rtol=0, atol=1e-5)


def frames(found: CudaPipeline) -> list[Frame]:
    return [frame for worker in found._pool.workers() for frame in worker._frames.values()]


def graphs(found: CudaPipeline) -> list[Graph]:
    return [graph for frame in frames(found) for graph in frame._graphs.values()]
