"""The frame that torch is measured with on a GPU, here on the CPU: it is the same model as the pipeline's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import random_photo, small_config, small_request

from benchmarks.torch_frame import TorchFrame, TorchStage
from export.builder import pipeline_spec
from export.random_weights import RandomWeights
from export.stages import stage_table
from export.torch_engine import TorchEngine
from runtime.pipeline import Pipeline
from runtime.segmenter import TEXT_STAGE

VARIANTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "as published": ((), True),
    "AnyUp on each view": (("early_refinement=before_merge",), True),
    "no AnyUp": (("early_refinement=none",), True),
    "guidance at another size": (("sam.input_size=128",), True),
    "more classes than are refined": (("refinement.pad_len=4",), True),
    "training-free": ((), False),
    "training-free, both halves": (("training_free_text=mean",), False),
}


def both(overrides: tuple[str, ...], refinement: bool, dtype: torch.dtype) -> tuple[TorchFrame, Pipeline]:
    """The frame in question, and the runtime's pipeline around the same modules in fp32."""
    config = small_config(*overrides)
    spec = pipeline_spec(small_request(config=config, refinement=refinement))
    stages = [stage for stage in stage_table(config, refinement) if stage.name != TEXT_STAGE]
    frame = {stage.name: TorchStage(stage.build(RandomWeights()).to(dtype), "x") for stage in stages}
    host = {s.name: TorchEngine(s.build(RandomWeights()), [output.name for output in s.outputs]) for s in stages}
    return TorchFrame(spec, frame, "cpu", dtype), Pipeline(spec, host)


def text_of(count: int) -> np.ndarray:
    vectors = np.random.default_rng(1).standard_normal((count, 2, 192)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_labels_and_scores_are_the_pipelines(variant: str) -> None:
    frame, host = both(*VARIANTS[variant], torch.float32)
    photo, text = random_photo(60, 90), text_of(6)
    for options in ({}, {"color": "bgr"}):
        found, expected = frame(photo, text, **options), host(photo, text, **options)
        assert found.labels.dtype == expected.labels.dtype
        assert np.mean(found.labels == expected.labels) > 0.998  # ties apart
        assert np.abs(found.scores - expected.scores).max() < 1e-4


def test_classes_in_chunks_wide_labels_no_scores_and_new_text() -> None:
    frame, host = both((), True, torch.float32)
    photo = random_photo(20, 30)
    for count in (70, 300):
        found, expected = frame(photo, text_of(count), scores=False), host(photo, text_of(count))
        assert found.labels.dtype == expected.labels.dtype
        assert np.mean(found.labels == expected.labels) > 0.99
        assert found.scores is None
    assert set(found.timings) == {"total"}  # the device's time is for GPUs


def test_half_precision_is_nearly_the_same() -> None:
    frame, host = both((), True, torch.float16)
    photo, text = random_photo(), text_of(5)
    found, expected = frame(photo, text), host(photo, text)
    assert np.abs(found.scores - expected.scores).max() < 0.01
    assert np.mean(found.labels == expected.labels) > 0.8


@pytest.mark.filterwarnings("ignore")
def test_torch_compile_takes_every_stage_whole() -> None:
    """Without breaks in its graph, which would be unfair to it. Its code generator is for the GPU to run."""
    frame, host = both((), True, torch.float32)
    for name, stage in frame.engines.items():
        whole = torch.compile(stage.module, dynamic=False, fullgraph=True, backend="eager")
        frame.engines[name] = TorchStage(whole, "x")
    photo, text = random_photo(), text_of(5)
    assert np.mean(frame(photo, text).labels == host(photo, text).labels) > 0.998


def test_events_around_the_frame_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.torch_frame import Watch

    done: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append(self)

        def elapsed_time(self, end: Event) -> float:
            assert done == [self, end, "waited"]
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("waited"))
    assert Watch("cuda").stop()["device"] == 2.5
