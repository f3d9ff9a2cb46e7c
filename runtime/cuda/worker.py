"""One stream of frames on the GPU, with two in flight: while one computes, another is copied in or out."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.checks import label_dtype
from runtime.bundle import Bundle
from runtime.cuda.arrays import DeviceArray, DevicePhoto, device_photo
from runtime.cuda.budget import Budget
from runtime.cuda.device import Device, DeviceTensor, PinnedArray
from runtime.cuda.frame import Frame, Streams, Views
from runtime.cuda.plan import FramePlan, plan_frame
from runtime.cuda.timing import Mark, Stopwatch, unmarked
from runtime.engines.base import DeviceEngine
from runtime.errors import InputError
from runtime.pipeline import FloatArray
from runtime.profiles import class_bucket
from runtime.reuse import Reuse

IN_FLIGHT = 2
MOST_FRAMES = 4  # class buckets kept by a worker
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A frame to be. `photo`: (H, W, 3) uint8 on the host, or another library's array on the device."""

    photo: Any
    text: FloatArray
    color: str = "rgb"
    scores: bool = True
    on_device: bool = False
    reuse: Reuse | None = None


@dataclass(frozen=True)
class Answer:
    """labels (H, W) and scores (H, W) or None, of NumPy's or `DeviceArray`s; `milliseconds` between both ends of the
    device's work."""

    labels: Any
    scores: Any
    milliseconds: float


class Slot:
    """What a frame in flight has for itself: room for its photo and its results, which grows to the largest."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._room: dict[tuple[str, bool], DeviceTensor] = {}
        self.uploaded, self.began, self.ended, self.done = (device.timer() for _ in range(4))
        self.keep: Any = None  # alive until the frame is done

    def host(self, name: str, size: int) -> PinnedArray:
        found = self._grow(name, size, on_host=True)
        assert isinstance(found, PinnedArray)
        return found

    def device(self, name: str, size: int) -> DeviceTensor:
        """On an integrated GPU the host's memory itself: nothing is copied."""
        return self._grow(name, size, on_host=self._device.integrated)

    def _grow(self, name: str, size: int, on_host: bool) -> DeviceTensor:
        key = name, on_host
        if key not in self._room or self._room[key].nbytes < size:
            if key in self._room:
                self._room.pop(key).close()
            make = self._device.pinned if on_host else self._device.tensor
            self._room[key] = make((size,), np.dtype(np.uint8))
            self._device.sync()
        return self._room[key]

    def close(self) -> None:
        for one in self._room.values():
            one.close()
        self._room.clear()


class Worker:
    """Streams, execution contexts and buffers of its own; the weights are shared with other workers.

    `start` and `finish` of one slot come in turn; `start` of several slots is put in order here.
    """

    def __init__(self, device: Device, bundle: Bundle, engines: Mapping[str, DeviceEngine], budget: Budget) -> None:
        self._device, self._bundle, self._engines, self._budget = device, bundle, engines, budget
        self._streams = Streams(*(device.stream() for _ in range(5)))
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._lock = threading.Lock()
        self.slots = tuple(Slot(device) for _ in range(IN_FLIGHT))
        self.failed = False

    def prepare(self, classes: int) -> None:
        """Allocates, binds and captures what a frame with so many classes needs."""
        with self._lock:
            self._frame(classes).warm()

    def start(self, slot: Slot, request: Request, mark: Mark = unmarked) -> None:
        """Queues a frame and returns. Everything that can be refused is refused before anything is launched."""
        with self._lock:
            frame = self._frame(len(request.text))
            try:
                views = self._views(frame, request)
                photo = self._photo(slot, request, mark)
                self._launch(frame, slot, photo, views, request, mark)
            except InputError:
                raise
            except BaseException:
                self.failed = True
                raise

    def _views(self, frame: Frame, request: Request) -> Views:
        frame.kept, kept = None, frame.kept
        if request.reuse is None:
            return frame.all_views
        if not isinstance(request.photo, np.ndarray):
            raise InputError("reuse_global and crops look at the photo on the host, got one on the GPU; leave them out")
        frame.kept = request.reuse.refresh(request.photo, request.color, kept)
        return Views(frame.kept.full, frame.kept.crops)

    def _launch(self, frame: Frame, slot: Slot, photo: DevicePhoto, views: Views, request: Request, mark: Mark) -> None:
        main = self._streams.main
        frame.set_text(request.text)
        main.record(slot.began)
        frame.preprocess(photo, request.color, mark)
        frame.run(views, mark)
        targets = self._targets(slot, photo.shape, request)
        labels, scores = targets["labels"], targets.get("scores")
        frame.label(labels.address, scores.address if scores else 0, photo.shape, mark)
        main.record(slot.ended)
        slot.keep = request, photo, targets
        self._download(slot, mark)

    def _photo(self, slot: Slot, request: Request, mark: Mark) -> DevicePhoto:
        """From the host on the stream for copies; where it is on the device, as it is."""
        main, up = self._streams.main, self._streams.up
        if not isinstance(request.photo, np.ndarray):
            return device_photo(self._device, request.photo, main)
        height, width = request.photo.shape[:2]
        size = 3 * height * width
        host, target = slot.host("photo", size), slot.device("photo", size)
        host.first((height, width, 3), np.dtype(np.uint8))[...] = request.photo
        if not self._device.integrated:
            with mark("upload", "upload", up):
                self._device.part(target, size).copy_from(self._device.part(host, size), stream=up)
        up.record(slot.uploaded)
        main.wait(slot.uploaded)
        return DevicePhoto(target.address, (height, width), 3 * width, None)

    def _targets(self, slot: Slot, shape: tuple[int, int], request: Request) -> dict[str, DeviceTensor]:
        """Where the results go: into the slot, or, if they stay on the device, into memory of their own."""
        types = result_types(request)
        if request.on_device:
            found = {name: self._device.tensor(shape, dtype) for name, dtype in types.items()}
            self._device.sync()
            return found
        return {name: slot.device(name, shape[0] * shape[1] * dtype.itemsize) for name, dtype in types.items()}

    def _download(self, slot: Slot, mark: Mark) -> None:
        request, photo, targets = slot.keep
        down = self._streams.down
        down.wait(slot.ended)
        if not request.on_device and not self._device.integrated:
            with mark("download", "download", down):
                for name, dtype in result_types(request).items():
                    size = photo.shape[0] * photo.shape[1] * dtype.itemsize
                    target = self._device.part(slot.host(name, size), size)
                    target.copy_from(self._device.part(targets[name], size), stream=down)
        down.record(slot.done)

    def finish(self, slot: Slot) -> Answer:
        """Waits for a frame."""
        try:
            slot.done.sync()
        except BaseException:
            self.failed = True
            raise
        (request, photo, targets), slot.keep = slot.keep, None
        found: dict[str, Any] = {}
        for name, dtype in result_types(request).items():
            size = photo.shape[0] * photo.shape[1] * dtype.itemsize
            if request.on_device:
                found[name] = DeviceArray(self._device, targets[name])
            else:
                found[name] = slot.host(name, size).first(photo.shape, dtype).copy()
        return Answer(found["labels"], found.get("scores"), float(slot.ended - slot.began))

    def measure(self, slot: Slot, request: Request) -> Stopwatch:
        """One frame, launch by launch, with events around each."""
        stopwatch = Stopwatch(self._device)
        self.start(slot, request, stopwatch)
        self.finish(slot)
        return stopwatch

    def _frame(self, classes: int) -> Frame:
        spec = self._bundle.manifest.pipeline
        bucket = class_bucket(classes, spec.pad_len if spec.refinement else 0)
        if bucket not in self._frames:
            plan = plan_frame(self._bundle, bucket)
            activations = self._activations(plan)
            needed, purpose = plan.nbytes() + activations, plan.describe(activations)
            while len(self._frames) >= MOST_FRAMES or (self._frames and needed > self._budget.left()):
                self._drop_oldest()
            log.info("%s", purpose)
            self._budget.take((self, bucket), needed, purpose)
            try:
                self._frames[bucket] = Frame(self._device, self._streams, spec, self._engines, plan)
            except BaseException:
                self._budget.give_back((self, bucket))
                raise
        self._frames.move_to_end(bucket)
        return self._frames[bucket]

    def _activations(self, plan: FramePlan) -> int:
        contexts = {call.context: call.stage for call in plan.calls}
        return sum(self._engines[stage].activation_memory() for stage in contexts.values())

    def _drop_oldest(self) -> None:
        bucket, frame = self._frames.popitem(last=False)
        frame.close()
        self._budget.give_back((self, bucket))

    def close(self) -> None:
        """After the last frame is finished."""
        self._streams.down.sync()
        while self._frames:
            self._drop_oldest()
        for slot in self.slots:
            slot.close()


def result_types(request: Request) -> dict[str, np.dtype[Any]]:
    labels = np.dtype(label_dtype(len(request.text)))
    return {"labels": labels} | ({"scores": np.dtype(np.float32)} if request.scores else {})
