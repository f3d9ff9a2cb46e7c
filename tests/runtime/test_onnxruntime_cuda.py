"""ONNX Runtime's CUDA engine on a fake device, whose provider is late, early, or refuses CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import fake_onnxruntime
import numpy as np
import pytest
from fake_cuda import Buffer, Stream
from fake_onnxruntime import Session
from test_tensorrt import device, one_logger_a_test  # noqa: F401 (fixtures)

import runtime.engines.onnxruntime
from runtime.bundle import Bundle
from runtime.engines import onnxruntime_cuda, open_on_device, open_stage
from runtime.engines.base import Engine
from runtime.engines.on_host import HostEngine
from runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
from runtime.errors import EngineError

CORRELATION = {"features": (36, 192), "text": ("classes", 2, 192)}


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch, device: None) -> None:  # noqa: F811
    """The CUDA provider, in order."""
    monkeypatch.setattr(runtime.engines.onnxruntime, "onnxruntime", fake_onnxruntime)
    monkeypatch.setattr(Session, "opened", [])


@pytest.fixture(params=["late", "early"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the session's stream runs as soon as its events allow, or when it is waited for."""
    monkeypatch.setattr(Stream, "early", request.param == "early")


@pytest.fixture
def correlation(small_bundle: Path, provider: None) -> Iterator[OnnxRuntimeCudaEngine]:
    engine = open_correlation(small_bundle)
    yield engine
    engine.close()


def open_correlation(small_bundle: Path, memory: int | None = None) -> OnnxRuntimeCudaEngine:
    engine = open_on_device(Bundle.open(small_bundle), "correlation", "onnxruntime-cuda", "fp16", memory)
    assert isinstance(engine, OnnxRuntimeCudaEngine)
    return engine


def on_cpu(small_bundle: Path, stage: str = "correlation") -> Engine:
    return open_stage(Bundle.open(small_bundle), stage, "onnxruntime", "fp16", 1)


def inputs(classes: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {name: [classes if n == "classes" else n for n in shape] for name, shape in CORRELATION.items()}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def same(found: Engine, expected: Engine, tensors: dict[str, np.ndarray]) -> None:
    results, reference = found(tensors), expected(tensors)
    assert results.keys() == reference.keys()
    for name, value in reference.items():
        assert results[name].dtype == value.dtype == np.float32  # of fp16 graphs too
        np.testing.assert_array_equal(results[name], value)


def test_results_are_those_of_the_host(small_bundle: Path, correlation: OnnxRuntimeCudaEngine, order: None) -> None:
    """Of many shapes, one after the other, and again, when they have a graph."""
    found, expected = HostEngine(correlation), on_cpu(small_bundle)
    for seed, classes in enumerate((3, 3, 3, 40, 1, 3)):
        same(found, expected, inputs(classes, seed))
    [session] = Session.opened
    assert session.replays >= 2
    assert correlation.precision == "fp16"
    found.close()


def test_the_backbone_on_crops_and_on_the_whole_image(small_bundle: Path, provider: None, order: None) -> None:
    """The number of patches follows from the image; one session and one copy of the weights serve both."""
    bundle = Bundle.open(small_bundle)
    engine = open_on_device(bundle, "backbone", "onnxruntime-cuda", "fp16", None)
    expected = on_cpu(small_bundle, "backbone")
    rng = np.random.default_rng(0)
    prefix = bundle.manifest.pipeline.prefix_tokens
    for batch, side in ((4, 64), (1, 96)):
        axes = {"batch": batch, "height": side, "width": side, "tokens": prefix + (side // 16) ** 2}
        shapes = {
            one.name: [axes[n] if isinstance(n, str) else n for n in one.shape]
            for one in bundle.stage("backbone").inputs
        }
        tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        found = HostEngine(engine)
        same(found, expected, tensors)
        found.close()
    assert len(Session.opened) == 1
    engine.close()


def test_a_graph_for_every_set_of_addresses(
    small_bundle: Path, correlation: OnnxRuntimeCudaEngine, order: None
) -> None:
    """One binding that goes to and fro between two sets of buffers, as the chunks of a long class list do."""
    core = fake_cuda.Device()
    stream, specs = core.create_stream(), {name: value.shape for name, value in inputs(3).items()}
    binding = correlation.bind(specs, int(stream.handle))
    sizes = {name: 4 * int(np.prod(shape)) for name, shape in specs.items()}
    sizes |= {name: 4 * int(np.prod(shape)) for name, (shape, _) in binding.outputs.items()}
    sets = [{name: Buffer(size) for name, size in sizes.items()} for _ in range(2)]
    expected = on_cpu(small_bundle)
    for turn in range(3):
        for number, buffers in enumerate(sets):
            tensors = inputs(3, seed=10 * turn + number)
            for name, value in tensors.items():
                buffers[name].memory[...] = value.reshape(-1).view(np.uint8)
            binding.address({name: buffer.handle for name, buffer in buffers.items()})
            binding.enqueue(int(stream.handle))
            stream.sync()
            found = buffers["correlation"].memory.view(np.float32)
            np.testing.assert_array_equal(found, expected(tensors)["correlation"].reshape(-1))
    [session] = Session.opened
    assert (len(session.captured), session.replays) == (2, 4)
    for buffers in sets:
        for buffer in buffers.values():
            buffer.close()


@pytest.mark.parametrize("forgetful", ["session", "caller"])
def test_both_waits_are_needed(
    forgetful: str, small_bundle: Path, correlation: OnnxRuntimeCudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutant without one of them gives other results, on a device that is late or that is early."""
    wait, differs = Stream.wait, []

    def forget(self: Stream, event: Any) -> None:
        if (self is correlation._stream) != (forgetful == "session"):
            wait(self, event)

    monkeypatch.setattr(Stream, "wait", forget)
    found, expected = HostEngine(correlation), on_cpu(small_bundle)
    for early in (False, True):
        monkeypatch.setattr(Stream, "early", early)
        for seed in range(2):
            tensors = inputs(4, seed)
            got, right = found(tensors)["correlation"], expected(tensors)["correlation"]
            differs.append(not np.array_equal(got, right))
    assert any(differs)
    correlation._stream.sync()  # nobody has waited for it
    found.close()


# --- CUDA graphs that are refused


def test_a_session_that_refuses_graphs(
    small_bundle: Path, provider: None, order: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "refuses_graphs", True)
    with pytest.warns(
        UserWarning, match="stage correlation runs without a CUDA graph of its own: .* the graph capture"
    ):
        engine = open_correlation(small_bundle)
    works_without_graphs(small_bundle, engine)


def test_a_capture_that_fails(
    small_bundle: Path, correlation: OnnxRuntimeCudaEngine, order: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "fails_capture", True)
    found, expected = HostEngine(correlation), on_cpu(small_bundle)
    with pytest.warns(UserWarning, match="stage correlation runs without a CUDA graph of its own: .*CUDA failure 900"):
        same(found, expected, inputs(3))
    found.close()
    works_without_graphs(small_bundle, correlation)


def works_without_graphs(small_bundle: Path, engine: OnnxRuntimeCudaEngine) -> None:
    found, expected = HostEngine(engine), on_cpu(small_bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            same(found, expected, inputs(3, seed))
    assert Session.opened[-1].given["enable_cuda_graph"] == "0"
    assert not Session.opened[-1].captured
    found.close()
    engine.close()


def test_graphs_are_bounded(small_bundle: Path, provider: None, order: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "MOST_GRAPHS", 2)
    engine = open_correlation(small_bundle)
    found, expected = HostEngine(engine), on_cpu(small_bundle)
    same(found, expected, inputs(1))
    with pytest.warns(UserWarning, match="stage correlation has 2 CUDA graphs; further shapes and buffers run without"):
        same(found, expected, inputs(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for classes in (3, 4, 4):
            same(found, expected, inputs(classes))
    assert len(Session.opened[0].captured) == 2
    found.close()
    engine.close()


# --- what goes wrong


@pytest.mark.parametrize("warm", [False, True])
def test_a_failing_run_names_the_stage(
    warm: bool, small_bundle: Path, correlation: OnnxRuntimeCudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, and the next run is right."""
    found, expected = HostEngine(correlation), on_cpu(small_bundle)
    if warm:
        same(found, expected, inputs(3))
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first run fails as one does that cannot be captured
        patch.setattr(Session, "fails", True)
        with pytest.raises(EngineError, match=r"^stage correlation: ONNX Runtime failed: CUDA failure 700: an illegal"):
            found(inputs(3))
    same(found, expected, inputs(3))
    assert bool(Session.opened[-1].captured) == warm
    found.close()


def test_no_provider(small_bundle: Path, provider: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"has no CUDAExecutionProvider .* pip install onnxruntime-gpu"):
        open_correlation(small_bundle)


def test_a_provider_that_does_not_start(small_bundle: Path, provider: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "without_cuda", True)
    with pytest.raises(EngineError, match="could not start CUDAExecutionProvider and fell back to the CPU"):
        open_correlation(small_bundle)


def test_a_closed_engine(small_bundle: Path, provider: None) -> None:
    engine = open_correlation(small_bundle)
    found = HostEngine(engine)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="stage correlation: its session is closed; load the bundle again"):
        found(inputs(3))
    found.close()


def test_options(small_bundle: Path, provider: None) -> None:
    """fp32 is fp32; an arena as large as asked for, the weights beside it."""
    engine = open_correlation(small_bundle, memory=123_000_000)
    [session] = Session.opened
    assert session.given == {
        "user_compute_stream": str(engine._stream.handle),
        "do_copy_in_default_stream": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": "123000000",
        "enable_cuda_graph": "1",
        "use_tf32": "0",
    }
    assert not engine.captures
    assert engine.activation_memory() == 0
    engine.close()
