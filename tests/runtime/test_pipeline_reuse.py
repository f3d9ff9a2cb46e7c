"""Video on the host pipeline: which views the backbone gets again, and whose features the others have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from recording_engines import PHOTO, Arrays, Engines, spec, text

import kernels
from runtime.errors import EngineError
from runtime.pipeline import Pipeline
from runtime.reuse import Reuse


def moved(photo: np.ndarray) -> np.ndarray:
    """Another lower right corner: crop 3 alone sees it."""
    changed = photo.copy()
    changed[36:, 50:] = 255 - changed[36:, 50:]
    return changed


def looked_at(engines: Engines) -> list[tuple[int, int]]:
    """How many images of which size the backbone got, call by call."""
    return [(len(inputs["image"]), inputs["image"].shape[-1]) for inputs, _ in engines.of("backbone")]


@pytest.mark.parametrize("early", ["after_merge", "before_merge", "none"])
def test_a_static_scene_is_looked_at_once(early: str) -> None:
    changes = {"early_refinement": early, "refinement": early == "after_merge"}
    engines, embeddings = Engines(), text(5)
    pipeline, every = Pipeline(spec(**changes), engines), Pipeline(spec(**changes), Engines())(PHOTO, embeddings)
    reuse = Reuse(spec().geometry, reuse_global=8, crops="changed")
    for _ in range(3):
        found = pipeline(PHOTO.copy(), embeddings, reuse=reuse)
        assert np.array_equal(found.labels, every.labels)
        assert np.array_equal(found.scores, every.scores)  # type: ignore[arg-type]
        assert {"backbone crops", "backbone full"} <= set(found.timings)
    assert looked_at(engines) == [(4, 64), (1, 96)]


def test_only_what_changed_is_looked_at() -> None:
    """The same features as without reuse: this backbone computes each image on its own."""
    engines, plain, embeddings = Engines(), Engines(), text(5)
    pipeline, every = Pipeline(spec(), engines), Pipeline(spec(), plain)
    reuse = Reuse(spec().geometry, crops="changed")
    for photo in (PHOTO, moved(PHOTO), PHOTO, PHOTO):
        found, expected = pipeline(photo, embeddings, reuse=reuse), every(photo, embeddings)
        assert np.array_equal(engines.of("correlation")[-1][0]["features"], plain.of("correlation")[-1][0]["features"])
        assert np.array_equal(found.labels, expected.labels)
    assert looked_at(engines) == [(4, 64), (1, 96), (1, 64), (1, 96), (1, 64), (1, 96), (1, 96)]


def test_the_whole_image_of_an_earlier_frame() -> None:
    engines = Engines()
    pipeline, reuse = Pipeline(spec(), engines), Reuse(spec().geometry, reuse_global=2)
    for photo in (PHOTO, moved(PHOTO), moved(PHOTO)):
        pipeline(photo, text(5), reuse=reuse)
    assert looked_at(engines) == [(4, 64), (1, 96), (4, 64), (4, 64), (1, 96)]
    crops, whole = (engines.of("backbone")[index][1]["features"] for index in (2, 1))
    merged = kernels.lga_merge(crops, whole[0], stride=2)
    assert np.array_equal(engines.of("anyup")[1][0]["features"], merged[None])


@pytest.mark.parametrize("view", ["crops", "full"])
def test_one_view_alone_is_kept_too(view: Any) -> None:
    engines = Engines()
    pipeline, reuse = Pipeline(spec(), engines, views=view), Reuse(spec().geometry, reuse_global=2, crops="changed")
    for _ in range(3):
        pipeline(PHOTO, text(5), reuse=reuse)
    assert looked_at(engines) == ([(4, 64)] if view == "crops" else [(1, 96), (1, 96)])


def test_streams_and_photos_on_one_pipeline() -> None:
    """Features are kept for one stream: two in turn compute everything, a photo in between disturbs neither."""
    engines, embeddings = Engines(), text(5)
    pipeline = Pipeline(spec(), engines)
    one, other = (Reuse(spec().geometry, reuse_global=8, crops="changed") for _ in range(2))
    for reuse in (one, other, one, None, one):
        pipeline(PHOTO if reuse is one else moved(PHOTO), embeddings, reuse=reuse)
    assert looked_at(engines) == [(4, 64), (1, 96)] * 4
    features = [inputs["features"] for inputs, _ in engines.of("correlation")]
    assert np.array_equal(features[4], features[0])
    assert not np.array_equal(features[1], features[0])


@pytest.mark.parametrize("stage", ["backbone", "decoder"])
def test_a_frame_that_fails_leaves_nothing_old_behind(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engines, embeddings = Engines(), text(5)
    pipeline, reuse = Pipeline(spec(), engines), Reuse(spec().geometry, reuse_global=8, crops="changed")

    def fail(**inputs: np.ndarray) -> Arrays:
        raise EngineError("lost")

    pipeline(PHOTO, embeddings, reuse=reuse)
    with monkeypatch.context() as patch, pytest.raises(EngineError, match="lost"):
        patch.setattr(engines, stage, fail, raising=False)
        pipeline(moved(PHOTO), embeddings, reuse=reuse)
    found = pipeline(moved(PHOTO), embeddings, reuse=reuse)
    expected = Pipeline(spec(), Engines())(moved(PHOTO), embeddings)
    if stage == "backbone":
        assert np.array_equal(found.labels, expected.labels)
        assert looked_at(engines)[-2:] == [(4, 64), (1, 96)]
    else:  # the features were there: crop 3's are new, those of the whole image a frame old
        assert looked_at(engines) == [(4, 64), (1, 96), (1, 64)]
