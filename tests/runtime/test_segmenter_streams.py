"""Threads, futures and streams of a Segmenter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from small_models import CLASSES, random_photo

import runtime.segmenter
from runtime import Segmentation, Segmenter
from runtime.errors import InputError
from runtime.pipeline import Pipeline

Load = Callable[..., Segmenter]


def same(first: Segmentation, second: Segmentation) -> bool:
    return np.array_equal(first.labels, second.labels)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_four_threads_get_their_own_results(backend: str, load: Load) -> None:
    segmenter = load(backend=backend, precision="fp32")
    photos = [random_photo(30 + i, 40, seed=i) for i in range(4)]
    expected = segmenter(photos)
    wrong: list[int] = []
    start = threading.Barrier(4)

    def work(i: int) -> None:
        start.wait()
        for _ in range(5):
            if not same(segmenter(photos[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_submit(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of submission, even if the first photo is the slowest."""
    real = runtime.segmenter.as_pixels

    def slow_at_first(photo: Any) -> Any:
        if photo.shape[0] == 20:
            time.sleep(0.3)
        return real(photo)

    monkeypatch.setattr(runtime.segmenter, "as_pixels", slow_at_first)
    done: list[int] = []
    futures = [segmenter.submit(random_photo(20 + i, 20, seed=i), scores=False) for i in range(4)]
    for i, future in enumerate(futures):
        future.add_done_callback(lambda _, i=i: done.append(i))
    results = [future.result(timeout=60) for future in futures]
    assert [result.labels.shape[0] for result in results] == [20, 21, 22, 23]
    assert results[0].scores is None
    segmenter.submit(random_photo()).result(timeout=60)  # the callbacks have run too
    assert done == [0, 1, 2, 3]


def test_what_is_submitted_keeps_its_classes(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image or a list of them, whatever is named while they wait."""
    segmenter, before = load(), CLASSES
    named = threading.Event()
    real = runtime.segmenter.as_pixels

    def late(photo: Any) -> Any:
        assert named.wait(timeout=60)
        return real(photo)

    monkeypatch.setattr(runtime.segmenter, "as_pixels", late)
    one, several = segmenter.submit(random_photo()), segmenter.submit([random_photo(), random_photo()])
    segmenter.set_classes(["floor", "cup"])
    named.set()
    assert [result.classes for result in (one.result(60), *several.result(60))] == [before] * 3  # type: ignore[misc]


def test_an_exception_comes_through_the_future(segmenter: Segmenter) -> None:
    bad, good = segmenter.submit(np.zeros((4, 4))), segmenter.submit(random_photo())
    with pytest.raises(InputError, match="dtype float64"):
        bad.result(timeout=60)
    assert same(good.result(timeout=60), segmenter(random_photo()))


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(random_photo(20, 20 + i, seed=i)).save(folder / f"{i}.png")
    return folder


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    writer.release()
    return path


def test_stream_of_a_folder(segmenter: Segmenter, photo_folder: Path) -> None:
    results = list(segmenter.stream(photo_folder))
    assert [result.labels.shape for result in results] == [(20, 20), (20, 21), (20, 22)]
    assert same(results[1], segmenter(random_photo(20, 21, seed=1)))
    assert results[0].scores is None
    assert next(segmenter.stream(str(photo_folder), scores=True)).scores is not None


def test_stream_of_a_video(segmenter: Segmenter, tmp_path: Path) -> None:
    assert len(list(segmenter.stream(write_video(tmp_path / "x.mp4", 3)))) == 3


def test_stream_of_photos_in_memory(segmenter: Segmenter) -> None:
    photos = [random_photo(20, 20, seed) for seed in range(2)]
    results = list(segmenter.stream(photo for photo in photos))
    assert [same(result, segmenter(photo)) for result, photo in zip(results, photos, strict=True)] == [True, True]


def test_a_live_stream_skips_frames_but_not_the_last(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    taken = threading.Event()

    def camera() -> Iterator[np.ndarray]:
        for i in range(20):
            if i == 1:
                taken.wait(timeout=60)  # the first frame is out: the other 19 come while it is being segmented
            read.append(i)
            yield random_photo(10, 10 + i)

    real = Pipeline.__call__

    def slow(*args: Any, **options: Any) -> Any:
        taken.set()
        while len(read) < 20:
            time.sleep(0.001)
        return real(*args, **options)

    monkeypatch.setattr(Pipeline, "__call__", slow)
    widths = [result.labels.shape[1] for result in segmenter.stream(camera(), drop=True)]
    assert widths[0] == 10
    assert widths[-1] == 29
    assert len(widths) <= 3
