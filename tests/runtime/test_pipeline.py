"""The order of the stages, with engines that only record: who gets what, in which mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from recording_engines import CROP_GRID, CROPS, GRID, IMAGE, PERIODS, PHOTO, Engines, spec, text

import kernels
from runtime.classes import check_shortlist
from runtime.errors import InputError
from runtime.pipeline import CLASS_CHUNK, Pipeline, StageTimer, sigmoid, upsample_argmax
from runtime.rope import rope_tables


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
    cosines = np.concatenate([outputs["correlation"] for _, outputs in engines.of("correlation")])
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


def test_any_number_of_classes_is_decoded_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, parts = text(1000), Engines()
    found = Pipeline(spec(), parts)(PHOTO, embeddings)
    assert [len(inputs["text"]) for inputs, _ in parts.of("correlation")] == [256, 256, 256, 232]
    monkeypatch.setattr("runtime.pipeline.CLASS_CHUNK", 1000)
    monkeypatch.setattr("runtime.pipeline.CORRELATION_CHUNK", 1000)
    engines = Engines()
    at_once = Pipeline(spec(), engines)(PHOTO, embeddings)
    assert len(engines.of("decoder")) == 1
    assert found.labels.dtype == np.uint16
    assert found.labels.max() > 255
    assert np.array_equal(found.labels, at_once.labels)
    assert np.array_equal(found.scores, at_once.scores)  # type: ignore[arg-type]


# --- the shortlist


@pytest.mark.parametrize(("classes", "dtype"), [(20, np.uint8), (300, np.uint16)])
def test_only_the_shortlist_is_refined(classes: int, dtype: type) -> None:
    engines, embeddings = Engines(), text(classes)
    result = Pipeline(spec(), engines, shortlist=2)(PHOTO, embeddings)
    cosines = np.concatenate([outputs["correlation"] for _, outputs in engines.of("correlation")])
    by_pixel = cosines.max(axis=1).reshape(classes, -1)
    kept = np.unique(np.argsort(-by_pixel, axis=0)[:2])
    [(inputs, _)] = engines.of("refinement")
    assert np.array_equal(inputs["correlation"], cosines[kept])
    assert np.array_equal(inputs["text"], embeddings[kept])
    local = kernels.upsample_argmax(engines.of("decoder")[0][1]["logits"], size=(50, 70))
    assert result.labels.dtype == dtype
    assert np.array_equal(result.labels, kept[local])
    assert result.refined == len(kept) < classes


def test_a_shortlist_of_all_classes_changes_nothing() -> None:
    embeddings = text(9)
    expected = Pipeline(spec(), Engines())(PHOTO, embeddings)
    for shortlist in (9, 100):
        found = Pipeline(spec(), Engines(), shortlist=shortlist)(PHOTO, embeddings)
        assert np.array_equal(found.labels, expected.labels)
        assert np.array_equal(found.scores, expected.scores)  # type: ignore[arg-type]
        assert found.refined == expected.refined == 9


def test_a_shortlist_before_pad_len() -> None:
    engines = Engines()
    result = Pipeline(spec(pad_len=2), engines, shortlist=3)(PHOTO, text(20))
    assert result.refined == len(engines.of("refinement")[0][0]["text"]) == 2


def test_how_many_classes_were_refined() -> None:
    assert Pipeline(spec(refinement=False), Engines())(PHOTO, text(20)).refined is None
    assert Pipeline(spec(pad_len=4), Engines())(PHOTO, text(20)).refined == 4


@pytest.mark.parametrize(
    ("shortlist", "changes", "words"),
    [
        (-1, {}, r"shortlist is -1; expected 0 \(off\) or the number of classes"),
        (3, {"refinement": False}, "shortlist is 3, but this bundle was built without refinement"),
    ],
)
def test_shortlists_that_cannot_be(shortlist: int, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_shortlist(shortlist, spec(**changes))
    check_shortlist(0, spec(refinement=False))


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
