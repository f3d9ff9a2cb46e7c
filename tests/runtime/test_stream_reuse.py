"""`stream(reuse_global=, crops=)`, `shortlist=` and long class lists with real engines."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from small_models import random_photo

from runtime import Segmentation, Segmenter
from runtime.errors import InputError
from runtime.pipeline import Pipeline

Load = Callable[..., Segmenter]


def same(first: Segmentation, second: Segmentation) -> bool:
    return np.array_equal(first.labels, second.labels) and np.array_equal(first.scores, second.scores)  # type: ignore[arg-type]


@pytest.fixture
def backbone_images(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many images of which size the backbone gets, call by call."""
    pipeline, seen = segmenter._pipeline, []
    assert isinstance(pipeline, Pipeline)
    real = pipeline.engines["backbone"]

    def counting(inputs: Any) -> Any:
        seen.append((len(inputs["image"]), inputs["image"].shape[-1]))
        return real(inputs)

    monkeypatch.setattr(pipeline, "engines", {**pipeline.engines, "backbone": counting})
    return seen


def corner(photo: np.ndarray) -> np.ndarray:
    """What only the last crop sees is another."""
    changed = photo.copy()
    changed[-10:, -10:] = 255 - changed[-10:, -10:]
    return changed


# --- video


@pytest.mark.parametrize(
    "options", [{"reuse_global": 3}, {"crops": "changed"}, {"reuse_global": 3, "crops": "changed"}]
)
def test_a_static_scene_has_the_labels_of_its_photo(options: dict[str, Any], segmenter: Segmenter) -> None:
    photo = random_photo()
    expected = segmenter(photo)
    results = list(segmenter.stream([photo.copy() for _ in range(4)], scores=True, **options))
    assert [same(result, expected) for result in results] == [True] * 4


def test_by_default_nothing_is_reused(segmenter: Segmenter, backbone_images: list[tuple[int, int]]) -> None:
    list(segmenter.stream([random_photo()] * 2))
    assert backbone_images == [(4, 64), (1, 96)] * 2


def test_what_a_stream_looks_at(segmenter: Segmenter, backbone_images: list[tuple[int, int]]) -> None:
    photo, small = random_photo(), random_photo(30, 30)
    frames = [photo, corner(photo), corner(photo), photo, small, small]
    results = list(segmenter.stream(frames, reuse_global=2, crops="changed"))
    first, one_crop, whole = [(4, 64), (1, 96)], [(1, 64)], [(1, 96)]
    assert backbone_images == [*first, *one_crop, *whole, *one_crop, *first]
    assert [result.labels.shape for result in results] == [(48, 64)] * 4 + [(30, 30)] * 2


def test_a_crop_alone_has_the_features_it_has_among_others(segmenter: Segmenter) -> None:
    """But for the last bits: with the whole image looked at as well, it is the model as published."""
    photo = random_photo()
    _, found = segmenter.stream([photo, corner(photo)], crops="changed", scores=True)
    expected = segmenter(corner(photo))
    assert np.mean(found.labels == expected.labels) > 0.999
    assert np.abs(found.scores - expected.scores).max() < 1e-4  # type: ignore[operator]


def test_each_stream_begins_anew(segmenter: Segmenter, backbone_images: list[tuple[int, int]]) -> None:
    for _ in range(2):
        list(segmenter.stream([random_photo()] * 2, reuse_global=8, crops="changed"))
    assert backbone_images == [(4, 64), (1, 96)] * 2


def test_other_classes_in_the_middle_of_a_stream(load: Load) -> None:
    """Features know nothing of classes."""
    segmenter, photo = load(["wall", "floor"]), random_photo()
    stream = segmenter.stream([photo] * 3, scores=True, reuse_global=8, crops="changed")
    next(stream)
    segmenter.set_classes(["floor", "cup", "person"])
    assert same(next(stream), segmenter(photo))


def test_photos_between_the_frames_of_a_stream(segmenter: Segmenter) -> None:
    photo = random_photo()
    expected = segmenter(photo)
    for result in segmenter.stream([photo] * 3, scores=True, reuse_global=8, crops="changed"):
        assert same(result, expected)
        segmenter(random_photo(seed=1))


def test_a_live_stream_counts_the_frames_that_it_segments(
    segmenter: Segmenter, backbone_images: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are dropped were never compared: what changed in them and stayed is seen in the next."""
    photo, taken, sent = random_photo(), threading.Event(), threading.Event()

    def camera() -> Iterator[np.ndarray]:
        yield photo
        taken.wait(timeout=60)
        yield from (random_photo(seed=seed) for seed in range(1, 9))
        yield corner(photo)
        sent.set()  # the source was asked for more: the last frame is in the mailbox

    real = Pipeline.__call__

    def slow(*args: Any, **options: Any) -> Any:
        taken.set()
        assert sent.wait(timeout=60)
        return real(*args, **options)

    monkeypatch.setattr(Pipeline, "__call__", slow)
    results = list(segmenter.stream(camera(), drop=True, reuse_global=2, crops="changed"))
    assert len(results) == 2
    assert backbone_images == [(4, 64), (1, 96), (1, 64)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reuse_global": 0}, "reuse_global is 0; expected 1 (the whole image in every frame) or more"),
        ({"crops": "none"}, "crops is 'none'; expected 'all' or 'changed'"),
    ],
)
def test_bad_options_are_told_before_the_first_frame(options: dict[str, Any], words: str, segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        segmenter.stream([random_photo()], **options)


# --- the shortlist, and long class lists


def with_classes(segmenter: Segmenter, count: int) -> Segmenter:
    """Random embeddings: encoding a thousand names takes long."""
    text = np.random.default_rng(0).standard_normal((count, 2, 192)).astype(np.float32)
    segmenter._embedder.embed = lambda names: text / np.linalg.norm(text, axis=-1, keepdims=True)  # type: ignore[method-assign]
    segmenter.set_classes([f"class {index}" for index in range(count)])
    return segmenter


def test_a_shortlist_of_all_classes_is_bit_identical(load: Load, segmenter: Segmenter) -> None:
    photo = random_photo()
    assert same(load(shortlist=len(segmenter.classes))(photo), segmenter(photo))


def test_a_shortlist_names_fewer_classes(load: Load) -> None:
    photo = random_photo()
    every, short = (with_classes(load(None, shortlist=shortlist), 60)(photo) for shortlist in (0, 1))
    assert short.labels.max() < 60
    assert not same(short, every)


@pytest.mark.parametrize(("shortlist", "words"), [(-2, "shortlist is -2; expected 0 (off) or the number of classes")])
@pytest.mark.filterwarnings("ignore:.*random weights")
def test_bad_shortlists(shortlist: int, words: str, load: Load) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        load(shortlist=shortlist)


def test_a_thousand_classes_in_chunks(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder looks at each class on its own: chunks of 32 give what one batch of 1000 gives."""
    segmenter, photo = with_classes(load(None), 1000), random_photo(24, 24)
    found = segmenter(photo)
    monkeypatch.setattr("runtime.pipeline.CLASS_CHUNK", 1000)
    at_once = segmenter(photo)
    assert np.array_equal(found.labels, at_once.labels)
    np.testing.assert_allclose(found.scores, at_once.scores, atol=1e-6)  # type: ignore[arg-type]
