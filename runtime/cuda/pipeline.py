"""Frames on the GPU. Same call and result as `runtime.pipeline.Pipeline`, which says what the stages mean."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.cuda.budget import Budget
from runtime.cuda.device import Device
from runtime.cuda.plan import needs_host
from runtime.cuda.pool import Pool
from runtime.cuda.timing import StageTime
from runtime.cuda.worker import IN_FLIGHT, Answer, Request, Worker
from runtime.engines.base import DeviceEngine
from runtime.engines.on_host import HostEngine
from runtime.errors import Dinov3SegError, EngineError, InputError
from runtime.pipeline import FloatArray, Pipeline, PipelineResult, sigmoid
from runtime.reuse import Reuse


class CudaPipeline:
    """Calls may come from any thread; so many run at once as there are slots.

    Args:
        engines: Of every stage but the text encoder.
        max_memory: Bytes of the GPU that all frames may use beside the weights; None: nearly all that is free.
        shortlist: As for `Pipeline`; chosen on the host, between the engines.
        workers: Frames that compute side by side. Each has buffers of its own; weights are shared.

    Raises:
        EngineError: a frame does not fit into the memory, or an engine fails.
    """

    on_gpu = True

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, DeviceEngine],
        max_memory: int | None = None,
        *,
        shortlist: int = 0,
        workers: int = 1,
    ) -> None:
        self.engines = dict(engines)
        if workers < 1:
            raise InputError(f"workers is {workers}; expected at least 1")
        self.in_flight = workers * IN_FLIGHT
        self._bundle, self._shortlist = bundle, shortlist
        self._host_lock = threading.Lock()
        self._through_host: Pipeline | None = None
        self._device, self._budget = Device(), Budget(max_memory)
        self._pool = Pool(lambda: Worker(self._device, bundle, self.engines, self._budget), workers)

    def prepare(self, classes: int) -> None:
        """Takes the memory and captures the graph for so many classes, on every worker, before the first frame."""
        self._device.enter()
        if not self._needs_host(classes):
            for worker in self._pool.workers():
                worker.prepare(classes)

    def __call__(
        self,
        photo: Any,
        text: FloatArray,
        *,
        color: str = "rgb",
        scores: bool = True,
        reuse: Reuse | None = None,
        on_device: bool = False,
    ) -> PipelineResult:
        """photo: (H, W, 3) uint8 of NumPy's, or on the device. `on_device`: labels stay there, as a `DeviceArray`;
        scores are then the winning logits, or without refinement the cosines."""
        start = time.perf_counter()
        self._device.enter()
        request = Request(photo, text, color, scores, on_device, reuse)
        if self._needs_host(len(text)):
            return self._on_host(request)
        answer = self._answer(request)
        winning = answer.scores
        if winning is not None and not on_device and self._bundle.manifest.pipeline.refinement:
            winning = sigmoid(winning)
        total = (time.perf_counter() - start) * 1e3
        return PipelineResult(answer.labels, winning, {"device": answer.milliseconds, "total": total})

    def _answer(self, request: Request) -> Answer:
        try:
            with self._pool.slot() as (worker, slot):
                worker.start(slot, request)
                return worker.finish(slot)
        except Dinov3SegError:
            raise
        except Exception as error:  # CUDA's, by whatever library noticed it
            raise EngineError(f"the GPU failed in this frame: {error}; the next one starts afresh") from error

    def stage_times(self, photo: Any, text: FloatArray) -> list[StageTime]:
        """One frame launched stage by stage, with events around every engine call, kernel and copy.

        Raises:
            InputError: this model passes through the host between two stages.
        """
        self._device.enter()
        if self._needs_host(len(text)):
            raise InputError("this model computes something on the host between two stages; it has no device times")
        with self._pool.slot() as (worker, slot):
            return worker.measure(slot, Request(photo, text, scores=False)).read()

    def _needs_host(self, classes: int) -> bool:
        return needs_host(self._bundle.manifest.pipeline, classes, self._shortlist)

    def _on_host(self, request: Request) -> PipelineResult:
        """The same engines, with host arrays between them, one frame after the other."""
        if request.on_device or not isinstance(request.photo, np.ndarray):
            raise InputError("this model passes through the host between two stages; give and take host memory")
        with self._host_lock:
            if self._through_host is None:
                engines = {name: HostEngine(opened) for name, opened in self.engines.items()}
                spec = self._bundle.manifest.pipeline
                self._through_host = Pipeline(spec, engines, shortlist=self._shortlist)
            return self._through_host(
                request.photo, request.text, color=request.color, scores=request.scores, reuse=request.reuse
            )

    def close(self) -> None:
        """Waits for the frames in flight; frees graphs, contexts, buffers and weights."""
        self._device.enter()
        self._pool.close()
        for engine in self._through_host.engines.values() if self._through_host else ():
            engine.close()  # type: ignore[attr-defined]
        self._through_host = None
        for opened in self.engines.values():
            opened.close()
        self.engines.clear()
