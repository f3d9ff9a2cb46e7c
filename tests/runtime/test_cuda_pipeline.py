"""The GPU pipeline on a fake device: order, events, lifetimes and addresses, with streams late and early."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_pipelines import (  # noqa: F401 (fixtures)
    Made,
    device,
    engines,
    frames,
    graphs,
    kernels_on_device,
    made,
    on_device,
    one_logger_a_test,
    same,
    text_of,
)
from fake_cuda import Buffer, Capture, Graph, Stream
from small_models import random_photo

from runtime.bundle import Bundle
from runtime.cuda.frame import Frame
from runtime.cuda.pipeline import CudaPipeline
from runtime.cuda.plan import plan_frame
from runtime.cuda.worker import MOST_FRAMES
from runtime.engines.tensorrt_library import Library
from runtime.errors import EngineError, InputError
from runtime.profiles import class_bucket
from runtime.reuse import Reuse


def test_frames_are_those_of_the_host(made: Made) -> None:  # noqa: F811
    text = text_of(5)
    for seed in range(3):
        same(made, random_photo(seed=seed), text)
    [graph] = graphs(made[0])
    assert graph.launches == 3


@pytest.mark.parametrize("options", [{"color": "bgr"}, {"scores": False}])
def test_options(made: Made, options: dict[str, Any]) -> None:  # noqa: F811
    same(made, random_photo(), text_of(3), **options)


def test_photos_of_any_size_share_a_graph(made: Made) -> None:  # noqa: F811
    for height, width in ((48, 64), (30, 90), (200, 100), (1, 1), (48, 64)):
        same(made, random_photo(height, width), text_of(5))
    [graph] = graphs(made[0])
    assert graph.launches == 5


def test_more_classes_than_are_decoded_at_once(made: Made) -> None:  # noqa: F811
    """Chunks of 32 classes, all in one execution context."""
    same(made, random_photo(), text_of(70))
    [frame] = frames(made[0])
    assert len([call for call in frame._plan.calls if call.stage == "decoder"]) == 3
    assert len([1 for stage, _ in frame._bound if stage == "decoder"]) == 1


def test_other_classes_swap_a_buffer_and_capture_nothing(made: Made) -> None:  # noqa: F811
    photo = random_photo()
    for seed, count in enumerate((4, 7, 1, 8)):
        same(made, photo, text_of(count, seed))
    [graph] = graphs(made[0])
    assert graph.launches == 4


def test_what_fills_the_batch_up_is_never_a_label(made: Made) -> None:  # noqa: F811
    """Even where every real class is as unlike as can be."""
    text = -np.abs(text_of(3))
    assert made[0](random_photo(), text).labels.max() < 3


@pytest.mark.parametrize("count", [255, 256])
def test_label_types(count: int, made: Made) -> None:  # noqa: F811
    same(made, random_photo(20, 20), text_of(count))


def test_addresses_stay(made: Made) -> None:  # noqa: F811
    same(made, random_photo(), text_of(4))
    [frame] = frames(made[0])
    before = {name: tensor.address for name, tensor in frame._buffers.items()}
    same(made, random_photo(50, 40, seed=1), text_of(6, seed=1))
    assert {name: tensor.address for name, tensor in frame._buffers.items()} == before


def test_class_buckets_are_bounded(made: Made) -> None:  # noqa: F811
    for turn in range(2):
        for count in range(1, 8 * (MOST_FRAMES + 2), 8):
            made[0](random_photo(), text_of(count, seed=turn))
    assert len(frames(made[0])) == MOST_FRAMES
    assert Graph.live == MOST_FRAMES


def test_results_are_the_callers_own(made: Made) -> None:  # noqa: F811
    text = text_of(4)
    first = made[0](random_photo(), text)
    labels = first.labels.copy()
    made[0](random_photo(seed=9), text)
    assert np.array_equal(first.labels, labels)


def test_preparing_leaves_nothing_for_the_first_frame(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    made[0].prepare(4)
    assert len(graphs(made[0])) == 1
    captures: list[Any] = []
    monkeypatch.setattr(Frame, "_capture", lambda self, views: captures.append(views))
    same(made, random_photo(), text_of(4))
    assert captures == []


def test_an_engine_that_cannot_be_captured(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(Capture, "refuse", True)
    with pytest.warns(UserWarning, match="launched stage by stage, their CUDA graph failed: operation not permitted"):
        same(made, random_photo(), text_of(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(made, random_photo(seed=1), text_of(4))


def test_an_engine_that_fails_frees_its_worker(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    live = len(Buffer.live)
    fails: Callable[..., Any] = lambda self, stream: False  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr("fake_tensorrt.Context.execute_async_v3", fails)
        with pytest.raises(EngineError, match="stage backbone: the engine failed"):
            made[0](random_photo(), text_of(4))
    assert len(Buffer.live) == live
    same(made, random_photo(), text_of(4))  # the next frame is right


@pytest.mark.parametrize("wait", ["_ready", "_full_done", "_guide_done", "uploaded", "ended"])
def test_every_event_is_needed(
    wait: str,
    on_device: tuple[Bundle, Library],  # noqa: F811
    kernels_on_device: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mutant that does not wait for one of them gives other labels, on a device that is late or that is early."""
    bundle, library = on_device
    photo, text = random_photo(), text_of(4)
    right = CudaPipeline(bundle, engines(bundle, library))
    expected = right(photo, text).scores
    right.close()
    monkeypatch.setattr(Capture, "refuse", True)
    wait_for = Stream.wait
    forgotten: list[Any] = []
    monkeypatch.setattr(Stream, "wait", lambda self, event: None if event in forgotten else wait_for(self, event))
    differs = []
    for early in (False, True):
        monkeypatch.setattr(Stream, "early", early)
        mutant = CudaPipeline(bundle, engines(bundle, library))
        with pytest.warns(UserWarning, match="launched stage by stage"):
            mutant.prepare(4)
        [worker] = mutant._pool.workers()
        forgotten[:] = [getattr(one, wait) for one in (*frames(mutant), *worker.slots) if hasattr(one, wait)]
        try:
            differs.append(not np.array_equal(mutant(photo, text).scores, expected))
        except EngineError as error:
            assert "before the device has come to it" in str(error)
            differs.append(True)
        forgotten.clear()
        mutant.close()
    assert any(differs)


@pytest.mark.parametrize(
    "change",
    [
        {"pad_len": 3},
        {"refinement": False, "training_free_text": "mean"},
        {"refinement": False, "training_free_text": "local"},
    ],
)
def test_other_orders_of_the_stages(made: Made, change: dict[str, Any]) -> None:  # noqa: F811
    """More classes than the head takes, and the mean over text halves, pass through the host."""
    bundle = made[0]._bundle
    spec = bundle.manifest.pipeline.model_copy(update=change)
    found = CudaPipeline(Bundle(bundle.root, bundle.manifest.model_copy(update={"pipeline": spec})), made[0].engines)
    made[1].spec = spec
    same((found, made[1]), random_photo(), text_of(5))
    assert len(frames(found)) == (1 if change.get("training_free_text") == "local" else 0)
    if "pad_len" in change:
        with pytest.raises(InputError, match="passes through the host between two stages"):
            found(random_photo(), text_of(5), on_device=True)
        with pytest.raises(InputError, match="no device times"):
            found.stage_times(random_photo(), text_of(5))
    found.engines = {}  # they are the other one's
    found.close()


def test_a_shortlist_passes_through_the_host(made: Made) -> None:  # noqa: F811
    found = CudaPipeline(made[0]._bundle, made[0].engines, shortlist=2)
    host = made[1]
    host.shortlist = 2
    same((found, host), random_photo(), text_of(12))
    assert frames(found) == []
    same((found, host), random_photo(), text_of(2))  # nothing to choose: on the device
    assert len(frames(found)) == 1
    found.engines = {}
    found.close()


def test_stage_times(made: Made) -> None:  # noqa: F811
    found = made[0].stage_times(random_photo(), text_of(40))
    sites = [one.site for one in found]
    assert {"upload", "preprocess", "backbone crops", "backbone full", "lga_merge", "anyup"} <= set(sites)
    assert {"correlation", "sam_encoder", "refinement", "decoder 0", "decoder 32", "upsample_argmax"} <= set(sites)
    assert sites[0] == "upload"
    assert sites[-1] == "download"
    assert {one.stage for one in found if one.site.startswith("decoder")} == {"decoder"}
    same(made, random_photo(), text_of(40))


# --- video


def test_views_that_did_not_change_keep_their_features(made: Made) -> None:  # noqa: F811
    geometry, text = made[0]._bundle.manifest.pipeline.geometry, text_of(4)
    here = Reuse(geometry, reuse_global=3, crops="changed")
    there = Reuse(geometry, reuse_global=3, crops="changed")
    still = random_photo(96, 96)
    moving = still.copy()
    moving[:20, :20] = 255 - moving[:20, :20]
    for turn, photo in enumerate([still, still, moving, moving, still]):
        found = made[0](photo, text, reuse=here)
        host = made[1](photo, text, reuse=there)
        np.testing.assert_allclose(found.scores, host.scores, rtol=0, atol=1e-5, err_msg=str(turn))
    [frame] = frames(made[0])
    assert {views.full for views in frame._graphs} == {True, False}
    assert {len(views.crops) for views in frame._graphs} >= {0, 4}


def test_a_frame_between_takes_the_features_away(made: Made) -> None:  # noqa: F811
    geometry, text = made[0]._bundle.manifest.pipeline.geometry, text_of(4)
    reuse = Reuse(geometry, reuse_global=9, crops="changed")
    photo = random_photo(96, 96)
    expected = made[0](photo, text, reuse=reuse).labels
    made[0](random_photo(96, 96, seed=5), text)
    assert np.array_equal(made[0](photo, text, reuse=reuse).labels, expected)
    assert reuse.last is not None
    assert reuse.last.full  # everything was computed again


# --- the plan


def test_the_plan_is_the_stage_table(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    plan = plan_frame(bundle, 40)
    shapes = {buffer.name: buffer.shape for buffer in plan.buffers}
    assert shapes["features crops"] == (4, 16, 192)
    assert shapes["features full"] == (1, 36, 192)
    assert shapes["class_features"][0] == 40
    assert shapes["present"] == (40,)
    assert shapes["logits"] == (40, 24, 24)
    [first, last] = [call for call in plan.calls if call.stage == "decoder"]
    assert last.offsets == {"class_features": 32 * 36 * shapes["class_features"][1], "logits": 32 * 24 * 24}
    assert first.offsets == {}
    assert len({one.name for one in plan.buffers}) == len(plan.buffers)
    assert plan.single_crops[3].offsets == {"image": 3 * 3 * 64 * 64, "features": 3 * 16 * 192}
    assert plan.describe(5_000_000).startswith("40 classes need ")


@pytest.mark.parametrize(
    ("classes", "most", "filled"),
    [
        (1, 0, 8),
        (8, 0, 8),
        (20, 0, 24),
        (32, 0, 32),
        (33, 0, 64),
        (250, 0, 256),
        (5, 6, 6),
        (20, 256, 24),
        (300, 4, 320),
    ],
)
def test_class_buckets(classes: int, most: int, filled: int) -> None:
    assert class_bucket(classes, most) == filled


def test_too_little_memory_is_said_before_anything_is_allocated(made: Made) -> None:  # noqa: F811
    made[0]._budget._most = 5_000_000
    live = len(Buffer.live)
    words = r"^64 classes need \d+ MB on the GPU \(engines \d+ MB, .*, 5 MB may be used; name fewer classes or raise"
    with pytest.raises(EngineError, match=words):
        made[0](random_photo(), text_of(40))
    assert len(Buffer.live) == live


def test_frames_make_room_for_each_other(made: Made, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    caplog.set_level("INFO")
    made[0].prepare(40)
    made[0]._budget._most = sum(made[0]._budget._taken.values())
    same(made, random_photo(), text_of(4))
    assert [frame._plan.classes for frame in frames(made[0])] == [8]
    assert [text.split(" need")[0] for text in caplog.messages] == ["64 classes", "8 classes"]
