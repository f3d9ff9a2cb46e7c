"""The order of the stages, with engines that only record: who gets what, in which mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_models import random_photo

import kernels
from runtime.geometry import Geometry
from runtime.manifest import PipelineSpec
from runtime.pipeline import CLASS_CHUNK, Pipeline, StageTimer, sigmoid, upsample_argmax
from runtime.rope import rope_tables

CHANNELS, GRID, CROP_GRID = 4, 6, 4
PERIODS = (1.0, 7.5)
Arrays = dict[str, np.ndarray]


def spec(**changes: Any) -> PipelineSpec:
    options: dict[str, Any] = {
        "geometry": Geometry(image_size=96, crop_size=64, stride=32),
        "sam_size": 96,
        "rope_periods": PERIODS,
        "prefix_tokens": 5,
        "early_refinement": "after_merge",
        "refinement": True,
        "pad_len": 0,
        "training_free_text": "local",
    }
    return PipelineSpec(**{**options, **changes})


class Engines:
    """Stages with simple arithmetic; `calls` holds (stage, inputs, outputs) in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Arrays, Arrays]] = []

    def __getitem__(self, stage: str) -> Any:
        def call(inputs: Arrays) -> Arrays:
            outputs = getattr(self, stage)(**inputs)
            self.calls.append((stage, dict(inputs), outputs))
            return outputs

        return call

    def of(self, stage: str) -> list[tuple[Arrays, Arrays]]:
        return [(inputs, outputs) for name, inputs, outputs in self.calls if name == stage]

    @property
    def order(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def backbone(self, image: np.ndarray, rope_sin: np.ndarray, rope_cos: np.ndarray) -> Arrays:
        patches = image.reshape(len(image), 3, image.shape[2] // 16, 16, -1, 16).mean(axis=(3, 5))
        flat = patches.reshape(len(image), 3, -1).transpose(0, 2, 1)
        assert rope_sin.shape == rope_cos.shape == (5 + flat.shape[1], 8)
        features = np.concatenate([flat, flat[..., :1] ** 2], axis=2)
        return {"features": np.ascontiguousarray(features, dtype=np.float32)}

    def anyup(self, image: np.ndarray, features: np.ndarray) -> Arrays:
        return {"refined": features + image.mean()}

    anyup_crop = anyup

    def correlation(self, features: np.ndarray, text: np.ndarray) -> Arrays:
        return {"correlation": (text @ features.T).reshape(len(text), 2, GRID, GRID)}

    def sam_encoder(self, image: np.ndarray) -> Arrays:
        return {f"guidance{i}": np.full((1, 2, GRID << i, GRID << i), image.mean() + i) for i in range(3)}

    def refinement(
        self, correlation: np.ndarray, guidance0: np.ndarray, text: np.ndarray, present: np.ndarray
    ) -> Arrays:
        assert present.tolist() == [1.0] * len(text)
        return {"class_features": correlation * 2}

    def decoder(self, class_features: np.ndarray, guidance1: np.ndarray, guidance2: np.ndarray) -> Arrays:
        assert guidance1.shape[2:] == (2 * GRID, 2 * GRID)
        assert guidance2.shape[2:] == (4 * GRID, 4 * GRID)
        return {"logits": class_features.mean(axis=1).repeat(4, axis=1).repeat(4, axis=2)}


def text(classes: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((classes, 2, CHANNELS)).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


PHOTO = random_photo(50, 70)
IMAGE, CROPS = kernels.preprocess(PHOTO, size=96, crop=64, stride=32)


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        ({}, ["backbone", "backbone", "anyup", "correlation", "sam_encoder", "refinement", "decoder"]),
        ({"refinement": False}, ["backbone", "backbone", "anyup", "correlation"]),
        ({"refinement": False, "early_refinement": "none"}, ["backbone", "backbone", "correlation"]),
        (
            {"refinement": False, "early_refinement": "before_merge"},
            ["backbone", "backbone", "anyup_crop", "anyup", "correlation"],
        ),
    ],
)
def test_order(changes: dict[str, Any], order: list[str]) -> None:
    engines = Engines()
    Pipeline(spec(**changes), engines)(PHOTO, text(3))
    assert engines.order == order


def test_crops_and_whole_image_get_their_own_rotary_tables() -> None:
    engines = Engines()
    Pipeline(spec(), engines)(PHOTO, text(3))
    for (inputs, _), images, grid in zip(engines.of("backbone"), (CROPS, IMAGE), (CROP_GRID, GRID), strict=True):
        sin, cos = rope_tables(PERIODS, (grid, grid), 5)
        assert np.array_equal(inputs["image"], images)
        assert np.array_equal(inputs["rope_sin"], sin)
        assert np.array_equal(inputs["rope_cos"], cos)


def test_after_merge() -> None:
    engines = Engines()
    Pipeline(spec(), engines)(PHOTO, text(3))
    (_, crops), (_, whole) = engines.of("backbone")
    merged = kernels.lga_merge(crops["features"], whole["features"][0], stride=2)
    [(inputs, outputs)] = engines.of("anyup")
    assert np.array_equal(inputs["features"], merged[None])
    assert np.array_equal(inputs["image"], IMAGE)
    assert np.array_equal(engines.of("correlation")[0][0]["features"], outputs["refined"][0])


def test_before_merge() -> None:
    engines = Engines()
    Pipeline(spec(early_refinement="before_merge"), engines)(PHOTO, text(3))
    (_, crops), (_, whole) = engines.of("backbone")
    [(crop_inputs, crop_outputs)], [(inputs, outputs)] = engines.of("anyup_crop"), engines.of("anyup")
    assert np.array_equal(crop_inputs["features"], crops["features"])
    assert np.array_equal(crop_inputs["image"], CROPS)
    assert np.array_equal(inputs["features"], whole["features"])
    merged = kernels.lga_merge(crop_outputs["refined"], outputs["refined"][0], stride=2)
    assert np.array_equal(engines.of("correlation")[0][0]["features"], merged)


def test_without_early_refinement() -> None:
    engines = Engines()
    Pipeline(spec(early_refinement="none"), engines)(PHOTO, text(3))
    (_, crops), (_, whole) = engines.of("backbone")
    merged = kernels.lga_merge(crops["features"], whole["features"][0], stride=2)
    assert np.array_equal(engines.of("correlation")[0][0]["features"], merged)


@pytest.mark.parametrize("size", [96, 64, 160])
def test_sam_sees_the_photo_at_its_own_size(size: int) -> None:
    engines = Engines()
    Pipeline(spec(sam_size=size), engines)(PHOTO[..., ::-1], text(3), color="bgr")
    expected = kernels.preprocess(PHOTO, size=size, crop=None)[0]
    assert np.array_equal(engines.of("sam_encoder")[0][0]["image"], expected)


@pytest.mark.parametrize(("half", "pick"), [("local", lambda c: c[:, 1]), ("mean", lambda c: c.mean(axis=1))])
def test_training_free_text(half: str, pick: Any) -> None:
    engines = Engines()
    result = Pipeline(spec(refinement=False, training_free_text=half), engines)(PHOTO, text(5))
    cosines = engines.of("correlation")[0][1]["correlation"]
    labels, winning = kernels.upsample_argmax(np.ascontiguousarray(pick(cosines)), size=(50, 70), scores=True)
    assert np.array_equal(result.labels, labels)
    assert np.array_equal(result.scores, winning)  # cosines, not probabilities


def test_scores_are_the_sigmoid_of_the_winning_logit() -> None:
    engines = Engines()
    result = Pipeline(spec(), engines)(PHOTO, text(5))
    logits = engines.of("decoder")[0][1]["logits"]
    labels, winning = kernels.upsample_argmax(logits, size=(50, 70), scores=True)
    assert np.array_equal(result.labels, labels)
    assert result.scores == pytest.approx(1 / (1 + np.exp(-winning.astype(np.float64))), abs=1e-6)
    without = Pipeline(spec(), Engines())(PHOTO, text(5), scores=False)
    assert without.scores is None
    assert np.array_equal(without.labels, labels)


@pytest.mark.parametrize("classes", [1, CLASS_CHUNK, CLASS_CHUNK + 1, 3 * CLASS_CHUNK - 1])
def test_the_decoder_gets_chunks(classes: int) -> None:
    engines = Engines()
    result = Pipeline(spec(), engines)(PHOTO, text(classes))
    calls = engines.of("decoder")
    assert [len(inputs["class_features"]) for inputs, _ in calls] == [
        min(CLASS_CHUNK, classes - start) for start in range(0, classes, CLASS_CHUNK)
    ]
    joined = np.concatenate([outputs["logits"] for _, outputs in calls])
    assert np.array_equal(result.labels, kernels.upsample_argmax(joined, size=(50, 70)))


@pytest.mark.parametrize(("classes", "dtype"), [(20, np.uint8), (255, np.uint8), (300, np.uint16)])
def test_classes_beyond_pad_len_never_win(classes: int, dtype: type) -> None:
    engines = Engines()
    embeddings = text(classes)
    result = Pipeline(spec(pad_len=4), engines)(PHOTO, embeddings)
    cosines = engines.of("correlation")[0][1]["correlation"]
    kept = np.sort(np.argsort(-cosines.reshape(classes, -1).max(axis=1))[:4])
    [(inputs, _)] = engines.of("refinement")
    assert np.array_equal(inputs["correlation"], cosines[kept])
    assert np.array_equal(inputs["text"], embeddings[kept])
    local = kernels.upsample_argmax(engines.of("decoder")[0][1]["logits"], size=(50, 70))
    assert result.labels.dtype == dtype
    assert np.array_equal(result.labels, kept[local])
    assert kept.max() > 4


def test_training_free_drops_no_class() -> None:
    engines = Engines()
    result = Pipeline(spec(refinement=False, pad_len=2), engines)(PHOTO, text(20))
    assert len(np.unique(result.labels)) > 2


def test_timings() -> None:
    result = Pipeline(spec(), Engines())(PHOTO, text(3))
    *stages, last = result.timings
    assert stages == [
        "preprocess",
        "backbone crops",
        "backbone full",
        "lga_merge",
        "anyup",
        "correlation",
        "sam_encoder",
        "refinement",
        "decoder",
        "upsample_argmax",
    ]
    assert last == "total"
    assert result.timings["total"] >= sum(result.timings[stage] for stage in stages)


def test_a_timer_counts_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 10.75, 11.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timer = StageTimer()
    with timer("a"):
        pass
    assert timer.finish() == {"a": 250.0, "total": 1000.0}


def test_sigmoid_of_extremes() -> None:
    assert sigmoid(np.array([-1e4, 0, 1e4, np.nan], np.float32)).tolist()[:3] == [0, 0.5, 1]


def test_upsampling_takes_logits_of_any_layout() -> None:
    logits = np.random.default_rng(0).standard_normal((6, 6, 3)).astype(np.float32).transpose(2, 0, 1)
    labels, scores = upsample_argmax(logits, (9, 9), scores=True)
    assert scores is not None
    assert np.array_equal(labels, kernels.upsample_argmax(logits.copy("C"), size=(9, 9)))
