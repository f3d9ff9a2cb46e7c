"""The GPU pipeline on a fake device: order, events, lifetimes and addresses, with streams late and early."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import fake_kernels
import numpy as np
import pytest
from fake_cuda import Buffer, Capture, Graph, Stream
from small_models import CLASSES, random_photo
from test_tensorrt import device, on_device, one_logger_a_test  # noqa: F401 (fixtures)

import runtime.cuda.device
from kernels import cuda_api
from runtime.bundle import Bundle
from runtime.cuda import pipeline as cuda_pipeline
from runtime.cuda.pipeline import MOST_FRAMES, CudaPipeline
from runtime.cuda.plan import Size, check_memory, plan_frame
from runtime.engines import open_stage
from runtime.engines.tensorrt import OpenEngine
from runtime.engines.tensorrt_library import Library
from runtime.errors import EngineError
from runtime.pipeline import Pipeline
from runtime.segmenter import TEXT_STAGE, Segmenter

Made = tuple[CudaPipeline, Pipeline]


@pytest.fixture
def kernels_on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our kernels, and streams of which all but a frame's first run as early as they can."""
    monkeypatch.setattr(cuda_api, "_kernels_cuda", fake_kernels)
    monkeypatch.setattr(cuda_pipeline, "free_memory", lambda: 8 << 30)

    def streams_of_a_frame(self: Any) -> Stream:
        number = self.__dict__.setdefault("made", 0)
        self.made = number + 1
        return Stream() if number == 0 or number % 3 == 1 else fake_cuda.side_stream()

    monkeypatch.setattr(runtime.cuda.device.Device, "stream", streams_of_a_frame)


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
    stages = [stage.name for stage in bundle.manifest.stages if stage.name != TEXT_STAGE]
    host = {name: open_stage(bundle, name, "onnxruntime", "fp16", 1) for name in stages}
    yield found, Pipeline(bundle.manifest.pipeline, host)
    found.close()
    found.close()
    assert set(Buffer.live) == before  # everything is freed, once
    assert Graph.live == 0


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
    found, host = made[0](photo, text, **options), made[1](photo, text, **options)
    assert found.labels.dtype == host.labels.dtype
    assert np.array_equal(found.labels, host.labels)
    assert (found.scores is None) == (host.scores is None)
    if host.scores is not None:
        assert np.array_equal(found.scores, host.scores)


def graphs(found: CudaPipeline) -> list[Graph]:
    return [frame._graph for frame in found._frames.values()]


def test_frames_are_those_of_the_host(made: Made) -> None:
    text = text_of(5)
    for seed in range(3):
        same(made, random_photo(seed=seed), text)
    [graph] = graphs(made[0])
    assert graph.launches == 3


@pytest.mark.parametrize("options", [{"color": "bgr"}, {"scores": False}])
def test_options(made: Made, options: dict[str, Any]) -> None:
    same(made, random_photo(), text_of(3), **options)


def test_more_classes_than_are_decoded_at_once(made: Made) -> None:
    """Chunks of 32, 32 and 6 classes, the first two in one execution context."""
    same(made, random_photo(), text_of(70))
    [frame] = made[0]._frames.values()
    assert len([call for call in frame._plan.calls if call.stage == "decoder"]) == 3
    assert len([1 for stage, _ in frame._contexts if stage == "decoder"]) == 2


def test_other_classes_swap_a_buffer_and_capture_nothing(made: Made) -> None:
    photo = random_photo()
    for seed in range(3):
        same(made, photo, text_of(4, seed))
    [graph] = graphs(made[0])
    assert graph.launches == 3


def test_addresses_stay(made: Made) -> None:
    same(made, random_photo(), text_of(4))
    [frame] = made[0]._frames.values()
    before = {name: tensor.address for name, tensor in frame._on_device.items()}
    same(made, random_photo(seed=1), text_of(4, seed=1))
    assert {name: tensor.address for name, tensor in frame._on_device.items()} == before


def test_frames_of_many_sizes_are_bounded(made: Made) -> None:
    for turn in range(2):
        for side in range(MOST_FRAMES + 2):
            same(made, random_photo(40 + side, 50), text_of(2, seed=turn))
    assert len(made[0]._frames) == MOST_FRAMES
    assert Graph.live == MOST_FRAMES


def test_results_are_the_callers_own(made: Made) -> None:
    text = text_of(4)
    first = made[0](random_photo(), text)
    labels = first.labels.copy()
    made[0](random_photo(seed=9), text)
    assert np.array_equal(first.labels, labels)


def test_an_engine_that_cannot_be_captured(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Capture, "refuse", True)
    with pytest.warns(UserWarning, match="launched stage by stage, its CUDA graph failed: operation not permitted"):
        same(made, random_photo(), text_of(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(made, random_photo(seed=1), text_of(4))


def test_an_engine_that_fails_frees_the_frame(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    live = len(Buffer.live)
    fails: Callable[..., Any] = lambda self, stream: False  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr("fake_tensorrt.Context.execute_async_v3", fails)
        with pytest.raises(EngineError, match="stage backbone: the engine failed"):
            made[0](random_photo(), text_of(4))
    assert len(Buffer.live) == live
    same(made, random_photo(), text_of(4))  # the next frame is right


@pytest.mark.parametrize("wait", ["_ready", "_full_done", "_guide_done"])
def test_every_event_is_needed(
    wait: str,
    on_device: tuple[Bundle, Library],  # noqa: F811
    kernels_on_device: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mutant that does not wait for one of them gives other scores, on a device that is late or that is early."""
    bundle, library = on_device
    photo, text = random_photo(), text_of(4)
    right = CudaPipeline(bundle, engines(bundle, library))
    expected = right(photo, text).scores
    right.close()
    monkeypatch.setattr(Capture, "refuse", True)
    load, wait_for = cuda_pipeline.Frame._load_tables, Stream.wait
    forgotten: list[Any] = []

    def note(self: Any, device: Any) -> None:  # noqa: F811
        load(self, device)
        forgotten.append(getattr(self, wait))

    monkeypatch.setattr(cuda_pipeline.Frame, "_load_tables", note)
    monkeypatch.setattr(Stream, "wait", lambda self, event: None if event in forgotten else wait_for(self, event))
    differs = []
    for early in (False, True):
        monkeypatch.setattr(Stream, "early", early)
        mutant = CudaPipeline(bundle, engines(bundle, library))
        with pytest.warns(UserWarning, match="launched stage by stage"):
            found = mutant(photo, text).scores
        differs.append(not np.array_equal(found, expected))
        mutant.close()
    assert any(differs)


# --- the plan


def test_the_plan_is_the_stage_table(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    plan = plan_frame(bundle, Size(48, 64, 40), scores=True)
    shapes = {buffer.name: buffer.shape for buffer in plan.buffers}
    assert shapes["features crops"] == (4, 16, 192)
    assert shapes["features full"] == (1, 36, 192)
    assert shapes["class_features"][0] == 40
    assert shapes["logits"] == (40, 24, 24)
    assert shapes["labels"] == shapes["scores host"] == (48, 64)
    assert plan.nbytes() == sum(one.nbytes for one in plan.buffers if not one.name.endswith("host"))
    [first, last] = [call for call in plan.calls if call.stage == "decoder"]
    assert last.offsets == {"class_features": 32 * 36 * shapes["class_features"][1], "logits": 32 * 24 * 24}
    assert first.offsets == {}
    assert len({one.name for one in plan.buffers}) == len(plan.buffers)


def test_too_little_memory_is_said_before_anything_is_allocated(small_bundle: Path) -> None:
    plan = plan_frame(Bundle.open(small_bundle), Size(48, 64, 40), scores=False)
    check_memory(plan, 1000, plan.nbytes() + 1000)
    with pytest.raises(
        EngineError, match=r"^40 classes at 64x48 need \d+ MB on the GPU \(engines 5 MB, .* raise max_memory"
    ):
        check_memory(plan, 5_000_000, plan.nbytes())


def test_frames_make_room_for_each_other(made: Made) -> None:
    one = plan_frame(made[0]._bundle, Size(48, 64, 4), scores=True)
    made[0]._max_memory = one.nbytes() + made[0]._activations(one)
    same(made, random_photo(), text_of(4))
    same(made, random_photo(40, 64), text_of(4))
    assert [key[0] for key in made[0]._frames] == [Size(40, 64, 4)]
    with pytest.raises(EngineError, match="40 classes at 64x48 need"):
        made[0](random_photo(), text_of(40))


@pytest.mark.parametrize(
    "change",
    [
        {"pad_len": 3},
        {"refinement": False, "training_free_text": "mean"},
        {"refinement": False, "training_free_text": "local"},
    ],
)
def test_other_orders_of_the_stages(made: Made, change: dict[str, Any]) -> None:
    """More classes than the head takes, and the mean over text halves, pass through the host."""
    bundle = made[0]._bundle
    spec = bundle.manifest.pipeline.model_copy(update=change)
    made[0]._bundle = Bundle(bundle.root, bundle.manifest.model_copy(update={"pipeline": spec}))
    made[1].spec = spec
    same(made, random_photo(), text_of(5))
    assert len(made[0]._frames) == (1 if change.get("training_free_text") == "local" else 0)
    made[0]._bundle = bundle


def test_a_fork_is_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_pipeline.os, "getpid", lambda: -1)
    with pytest.raises(EngineError, match="loaded before a fork, which CUDA does not survive"):
        made[0](random_photo(), text_of(5))


def test_the_segmenter_uses_it(
    on_device: tuple[Bundle, Library],  # noqa: F811
    kernels_on_device: None,
) -> None:
    root = on_device[0].root
    before = len(Buffer.live)
    with pytest.warns(UserWarning, match="random weights"):
        expected = Segmenter.load(root, CLASSES, backend="onnxruntime", precision="fp16", cache_dir=None)
        found = Segmenter.load(root, CLASSES, backend="tensorrt", precision="fp16", cache_dir=None)
    photos = [random_photo(seed=seed) for seed in range(4)]
    with expected, found:
        assert "device" in found(photos[0]).timings
        futures = [found.submit(photo) for photo in photos]
        for photo, future in zip(photos, futures, strict=True):
            assert np.array_equal(future.result().labels, expected(photo).labels)
        assert "fp16" in found.precision["decoder"]
    assert Graph.live == 0
    assert len(Buffer.live) <= before + 4  # those of the text encoder, which is gone with its process
