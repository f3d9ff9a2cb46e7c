"""Frames in flight, several workers, failures, memory that is shared with other libraries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import fake_cuda
import fake_kernels
import numpy as np
import pytest
from cuda_pipelines import (  # noqa: F401 (fixtures)
    Made,
    device,
    engines,
    frames,
    host_pipeline,
    kernels_on_device,
    made,
    on_device,
    one_logger_a_test,
    same,
    text_of,
)
from fake_cuda import Buffer, Event, Graph, Stream, StridedMemoryView
from small_models import CLASSES, random_photo

from kernels import cuda_api
from runtime.bundle import Bundle
from runtime.cuda.pipeline import CudaPipeline
from runtime.engines.tensorrt_library import Library
from runtime.errors import EngineError, InputError
from runtime.segmenter import Segmenter


@pytest.fixture
def segmenters(
    on_device: tuple[Bundle, Library],  # noqa: F811
    kernels_on_device: None,  # noqa: F811
) -> Iterator[tuple[Segmenter, Segmenter]]:
    """On the device with two workers, and on the host."""
    root = on_device[0].root
    before = len(Buffer.live)
    with pytest.warns(UserWarning, match="random weights"):
        found = Segmenter.load(root, CLASSES, backend="tensorrt", precision="fp16", cache_dir=None, workers=2)
        expected = Segmenter.load(root, CLASSES, backend="onnxruntime", precision="fp16", cache_dir=None)
    with found, expected:
        yield found, expected
    assert Graph.live == 0
    assert len(Buffer.live) <= before + 4  # those of the text encoder, which is gone with its process


def test_the_segmenter_uses_it(segmenters: tuple[Segmenter, Segmenter]) -> None:
    found, expected = segmenters
    photos = [random_photo(30 + seed, 40, seed=seed) for seed in range(6)]
    assert "device" in found(photos[0]).timings
    labels = [expected(photo).labels for photo in photos]
    for results in (
        [future.result() for future in [found.submit(photo) for photo in photos]],
        found(photos),
        list(found.stream(photos)),
        list(found.stream(photos, crops="changed")),
    ):
        same_labels = [np.array_equal(one.labels, label) for one, label in zip(results, labels, strict=True)]
        assert same_labels == [True] * 6
    assert "fp16" in found.precision["decoder"]


def test_eight_callers_get_their_own_results(segmenters: tuple[Segmenter, Segmenter]) -> None:
    """Each with photos of its own, which its labels tell apart; meanwhile somebody swaps the order of the classes."""
    found, expected = segmenters
    photos = [random_photo(24, 32, seed=seed) for seed in range(8)]
    orders = {tuple(CLASSES): [expected(photo).labels for photo in photos]}
    expected.set_classes(CLASSES[::-1])
    orders[tuple(CLASSES[::-1])] = [expected(photo).labels for photo in photos]
    wrong: list[int] = []
    start = threading.Barrier(9)

    def call(i: int) -> None:
        start.wait()
        for _ in range(6):
            result = found(photos[i])
            if not np.array_equal(result.labels, orders[result.classes][i]):
                wrong.append(i)

    def swap() -> None:
        start.wait()
        for turn in range(6):
            found.set_classes(CLASSES[:: 1 if turn % 2 else -1])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)] + [threading.Thread(target=swap)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_two_frames_are_in_flight(made: Made) -> None:  # noqa: F811
    """The second is queued before the first is over, and a third waits for its turn."""
    pipeline, text = made[0], text_of(4)
    photos = [random_photo(seed=seed) for seed in range(2)]
    expected = [made[1](photo, text).labels for photo in photos]
    from runtime.cuda.worker import Request

    pipeline.prepare(4)
    with pipeline._pool.slot() as (worker, first), pipeline._pool.slot() as (other, second):
        assert worker is other
        worker.start(first, Request(photos[0], text))
        worker.start(second, Request(photos[1], text))
        third = threading.Thread(target=pipeline, args=(photos[0], text))
        third.start()
        assert np.array_equal(worker.finish(second).labels, expected[1])
        assert np.array_equal(worker.finish(first).labels, expected[0])
        assert third.is_alive()
    third.join(timeout=60)
    assert not third.is_alive()


# --- failures


@pytest.mark.parametrize("where", ["fake_cuda.Graph.launch", "fake_cuda.Event.sync"])
def test_a_cuda_error_in_one_frame(where: str, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    photo, text = random_photo(), text_of(4)
    same(made, photo, text)

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED")

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(EngineError, match="the GPU failed in this frame: CUDA_ERROR_LAUNCH_FAILED; the next one"):
            made[0](photo, text)
    [worker] = made[0]._pool.workers()
    assert not worker.failed  # a new one
    same(made, photo, text)


def test_a_gpu_that_does_not_recover(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    photo, text = random_photo(), text_of(4)
    same(made, photo, text)

    def dead(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    with monkeypatch.context() as patch:
        patch.setattr("fake_cuda.Graph.launch", dead)
        patch.setattr("fake_cuda.Device.create_event", dead)
        with pytest.raises(EngineError, match="the GPU failed in this frame"):
            made[0](photo, text)
    with pytest.raises(EngineError, match=r"did not recover .*ILLEGAL_ADDRESS.*; load the bundle in a new process"):
        made[0](photo, text)


def test_a_failure_leaves_the_other_frame_alone(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from runtime.cuda.worker import Request

    pipeline, text = made[0], text_of(4)
    photo = random_photo()
    expected = made[1](photo, text).labels
    pipeline.prepare(4)
    with pipeline._pool.slot() as (worker, slot):
        worker.start(slot, Request(photo, text))
        with monkeypatch.context() as patch, pytest.raises(EngineError):
            patch.setattr("fake_cuda.Graph.launch", lambda *_: 1 / 0)
            pipeline(photo, text)
        assert np.array_equal(worker.finish(slot).labels, expected)
    same(made, photo, text)


def test_closed(made: Made) -> None:  # noqa: F811
    made[0].close()
    with pytest.raises(EngineError, match="this pipeline is closed"):
        made[0](random_photo(), text_of(4))


@pytest.mark.parametrize("workers", [0, -1])
def test_bad_workers(workers: int, made: Made) -> None:  # noqa: F811
    with pytest.raises(InputError, match=f"workers is {workers}; expected at least 1"):
        CudaPipeline(made[0]._bundle, {}, workers=workers)


# --- memory of other libraries


class CudaArray:
    """As torch, CuPy, Numba and PyCUDA show their arrays. Rows may be padded."""

    def __init__(self, pixels: np.ndarray, padding: int = 0, stream: int | None = None) -> None:
        self.rows = np.pad(pixels.reshape(len(pixels), -1), ((0, 0), (0, padding)))
        self.buffer = Buffer(self.rows.nbytes)
        self.buffer.memory[:] = self.rows.reshape(-1).view(np.uint8)
        strides = (self.rows.shape[1], 3, 1) if padding else None
        self.__cuda_array_interface__ = {
            "shape": pixels.shape,
            "typestr": pixels.dtype.str,
            "data": (self.buffer.handle, False),
            "version": 3,
            "strides": strides,
            "stream": stream,
        }


class DlpackArray:
    def __init__(self, pixels: np.ndarray) -> None:
        self.buffer = Buffer(pixels.nbytes)
        self.pixels = self.buffer.memory.view(pixels.dtype).reshape(pixels.shape)
        self.pixels[...] = pixels

    def __dlpack__(self, stream: int) -> np.ndarray:
        return self.pixels

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@pytest.fixture
def kernel_addresses(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Where preprocess read its photos and where the argmax wrote its labels."""
    found: dict[str, list[int]] = {"photo": [], "labels": []}
    preprocess, argmax = fake_kernels.preprocess, fake_kernels.upsample_argmax

    def reading(photo: int, *rest: Any) -> None:
        found["photo"].append(photo)
        preprocess(photo, *rest)

    def writing(*arguments: Any) -> None:
        found["labels"].append(arguments[10])
        argmax(*arguments)

    monkeypatch.setattr(fake_kernels, "preprocess", reading)
    monkeypatch.setattr(fake_kernels, "upsample_argmax", writing)
    return found


@pytest.mark.parametrize("make", [CudaArray, lambda pixels: CudaArray(pixels, padding=5), DlpackArray])
def test_a_photo_on_the_device_is_read_where_it_lies(
    make: Callable[..., Any],
    made: Made,  # noqa: F811
    kernel_addresses: dict[str, list[int]],
) -> None:
    photo, text = random_photo(), text_of(4)
    there = make(photo)
    found = made[0](there, text)
    assert np.array_equal(found.labels, made[1](photo, text).labels)
    assert kernel_addresses["photo"] == [there.buffer.handle]
    there.buffer.close()


def test_a_photo_that_its_owner_still_writes(made: Made) -> None:  # noqa: F811
    photo, text = random_photo(), text_of(4)
    producer = Stream()
    there = CudaArray(np.zeros_like(photo), stream=producer.handle)
    producer.enqueue(lambda: there.buffer.memory.__setitem__(slice(None), photo.reshape(-1)))
    assert np.array_equal(made[0](there, text).labels, made[1](photo, text).labels)
    there.buffer.close()


def test_labels_stay_where_the_kernel_wrote_them(
    made: Made,  # noqa: F811
    kernel_addresses: dict[str, list[int]],
) -> None:
    photo, text = random_photo(), text_of(4)
    expected = made[1](photo, text).labels
    found = made[0](photo, text, scores=False, on_device=True).labels
    about = found.__cuda_array_interface__
    assert about["data"][0] == kernel_addresses["labels"][-1]
    assert (about["shape"], about["typestr"]) == (expected.shape, "|u1")
    made[0](random_photo(seed=1), text)  # a later frame leaves them alone
    assert np.array_equal(found.to_host(), expected)
    assert StridedMemoryView(found, stream_ptr=0).ptr == about["data"][0]
    found._tensor.close()


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), r"image is \(4, 5, 3\) float32 on the device; expected \(H, W, 3\) uint8"),
        (np.zeros((4, 5, 4), np.uint8), r"image is \(4, 5, 4\) uint8 on the device; expected"),
        (np.zeros((4, 5), np.uint8), r"image is \(4, 5\) uint8 on the device; expected"),
    ],
)
def test_bad_photos_on_the_device(pixels: np.ndarray, words: str, made: Made) -> None:  # noqa: F811
    there = CudaArray(pixels)
    with pytest.raises(InputError, match=words):
        made[0](there, text_of(4))
    there.buffer.close()
    [worker] = made[0]._pool.workers()
    assert not worker.failed
    same(made, random_photo(), text_of(4))


def test_strides_that_no_row_of_pixels_has(made: Made) -> None:  # noqa: F811
    there = CudaArray(random_photo())
    there.__cuda_array_interface__["strides"] = (1, 48, 3072)
    with pytest.raises(InputError, match=r"image has strides \(1, 48, 3072\); expected pixels side by side"):
        made[0](there, text_of(4))
    there.buffer.close()


def test_labels_on_the_device_from_the_segmenter(segmenters: tuple[Segmenter, Segmenter]) -> None:
    found, expected = segmenters
    photo = random_photo()
    there = CudaArray(photo)
    result = found.on_device(there)
    assert np.array_equal(result.to_host().labels, expected(photo).labels)
    assert result.classes == tuple(CLASSES)
    with pytest.raises(InputError, match="only where the engines run there"):
        expected.on_device(photo)
    with pytest.raises(InputError, match="expected a numpy array"):
        expected(there)
    result.labels._tensor.close()
    there.buffer.close()


def test_an_integrated_gpu_copies_nothing(
    on_device: tuple[Bundle, Library],  # noqa: F811
    kernels_on_device: None,  # noqa: F811
    kernel_addresses: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernels read and write the host's memory."""
    monkeypatch.setattr(fake_cuda.Device.properties, "integrated", True)
    bundle, library = on_device
    found = CudaPipeline(bundle, engines(bundle, library))
    same((found, host_pipeline(bundle)), random_photo(), text_of(4))
    [worker] = found._pool.workers()
    rooms = [room for slot in worker.slots for room in slot._room]
    assert {on_host for _, on_host in rooms} == {True}
    assert sorted(name for name, _ in rooms) == ["labels", "photo", "scores"]
    assert "upload" not in {one.site for one in found.stage_times(random_photo(), text_of(4))}
    found.close()


def test_cuda_kernels_that_were_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_api, "_kernels_cuda", None)
    assert not cuda_api.available()


def test_events_are_read_in_time() -> None:
    """The fake itself: a time is not to be had before the device has come to it."""
    stream, begin, end = Stream(), Event(), Event()
    stream.record(begin)
    stream.record(end)
    with pytest.raises(AssertionError, match="before the device has come to it"):
        end - begin
    end.sync()
    assert end - begin == 1.0
