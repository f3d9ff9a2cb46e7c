"""A frame on the GPU: one graph launch between two copies."""

from __future__ import annotations

import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels import cuda_api
from runtime.bundle import Bundle
from runtime.cuda.device import Device, DeviceTensor, PinnedArray
from runtime.cuda.plan import FramePlan, Size, check_memory, needs_host, plan_frame
from runtime.engines.base import Array, Binding, DeviceEngine
from runtime.engines.on_host import HostEngine
from runtime.errors import EngineError
from runtime.gpu import free_memory
from runtime.manifest import PipelineSpec
from runtime.pipeline import FloatArray, Pipeline, PipelineResult, sigmoid
from runtime.rope import rope_tables

MOST_FRAMES = 4  # graphs kept: sizes of photos times lengths of class lists
RESERVE = 0.9  # of the free memory


class CudaPipeline:
    """Same call and result as `runtime.pipeline.Pipeline`, which says what the stages mean.

    Args:
        engines: Of every stage but the text encoder.
        max_memory: Bytes of the GPU that all frames may use beside the weights; None: nearly all that is free.

    Raises:
        EngineError: a frame does not fit into the memory, an engine fails, or the process was forked.
    """

    def __init__(self, bundle: Bundle, engines: Mapping[str, DeviceEngine], max_memory: int | None = None) -> None:
        self.engines = dict(engines)
        self._bundle, self._max_memory, self._process = bundle, max_memory, os.getpid()
        self._through_host: Pipeline | None = None
        self._device = Device()
        self._frames: OrderedDict[tuple[Size, str, bool], Frame] = OrderedDict()
        self._used: dict[tuple[Size, str, bool], int] = {}

    def __call__(self, photo: Array, text: FloatArray, *, color: str = "rgb", scores: bool = True) -> PipelineResult:
        start = time.perf_counter()
        if os.getpid() != self._process:
            raise EngineError(
                "this Segmenter was loaded before a fork, which CUDA does not survive; load it in the child"
            )
        if needs_host(self._bundle.manifest.pipeline, len(text)):
            return self._host()(photo, text, color=color, scores=scores)
        self._device.enter()
        frame = self._frame(Size(photo.shape[0], photo.shape[1], len(text)), color, scores)
        labels, winning, milliseconds = frame.run(photo, text)
        if winning is not None and self._bundle.manifest.pipeline.refinement:
            winning = sigmoid(winning)
        total = (time.perf_counter() - start) * 1e3
        return PipelineResult(labels, winning, {"device": milliseconds, "total": total})

    def _host(self) -> Pipeline:
        """The same engines, with host arrays between them."""
        if self._through_host is None:
            engines = {name: HostEngine(opened) for name, opened in self.engines.items()}
            self._through_host = Pipeline(self._bundle.manifest.pipeline, engines)
        return self._through_host

    def _frame(self, size: Size, color: str, scores: bool) -> Frame:
        key = (size, color, scores)
        if key not in self._frames:
            plan = plan_frame(self._bundle, size, scores)
            while len(self._frames) >= MOST_FRAMES or (self._frames and not self._fits(plan)):
                self._drop_oldest()
            check_memory(plan, self._activations(plan), self._limit())
            self._frames[key] = Frame(self._device, self._bundle.manifest.pipeline, self.engines, plan, color, scores)
            self._used[key] = plan.nbytes() + self._activations(plan)
        self._frames.move_to_end(key)
        return self._frames[key]

    def _activations(self, plan: FramePlan) -> int:
        contexts = {call.context: call.stage for call in plan.calls}
        return sum(self.engines[stage].activation_memory() for stage in contexts.values())

    def _fits(self, plan: FramePlan) -> bool:
        return plan.nbytes() + self._activations(plan) <= self._limit()

    def _limit(self) -> int:
        """Bytes for a further frame."""
        free = int(RESERVE * free_memory())
        return free if self._max_memory is None else min(free, self._max_memory - sum(self._used.values()))

    def _drop_oldest(self) -> None:
        key, frame = self._frames.popitem(last=False)
        del self._used[key]
        frame.close()

    def close(self) -> None:
        """Frees graphs, contexts and buffers."""
        self._device.enter()
        while self._frames:
            self._drop_oldest()
        for engine in self._through_host.engines.values() if self._through_host else ():
            engine.close()  # type: ignore[attr-defined]
        self._through_host = None
        self.engines.clear()


class Frame:
    """Buffers, bound engines and the graph of one photo size and number of classes. Addresses never change."""

    def __init__(
        self,
        device: Device,
        spec: PipelineSpec,
        engines: Mapping[str, DeviceEngine],
        plan: FramePlan,
        color: str,
        scores: bool,
    ) -> None:
        self._spec, self._plan, self._color, self._scores = spec, plan, color, scores
        self._main, self._side, self._guide = device.stream(), device.stream(), device.stream()
        self._ready, self._full_done, self._guide_done = device.timer(), device.timer(), device.timer()
        self._began, self._ended = device.timer(), device.timer()
        self._on_device: dict[str, DeviceTensor] = {}
        self._on_host: dict[str, PinnedArray] = {}
        self._text: Array | None = None
        self._graph: Any = None
        self._calls = {call.site: call for call in plan.calls}
        self._contexts: dict[Any, Binding] = {}
        try:
            for one in plan.buffers:
                make: Callable[..., Any] = device.pinned if one.on_host else device.tensor
                (self._on_host if one.on_host else self._on_device)[one.name] = make(one.shape, np.dtype(one.dtype))
            device.sync()
            stream = int(self._main.handle)
            self._contexts = {call.context: engines[call.stage].bind(call.shapes, stream) for call in plan.calls}
            self._load_tables(device)
            self._warm_and_capture()
        except BaseException:
            self.close()
            raise

    def _load_tables(self, device: Device) -> None:
        """Rotary tables, once."""
        geometry = self._spec.geometry
        for view, grid in (("crops", geometry.crop_grid), ("full", geometry.grid)):
            tables = rope_tables(self._spec.rope_periods, (grid, grid), self._spec.prefix_tokens)
            for name, table in zip(("rope_sin", "rope_cos"), tables, strict=True):
                host = device.pinned(table.shape, table.dtype)
                device.sync()
                host.array[...] = table
                host.upload(self._on_device[f"{name} {view}"], self._main)
                self._main.sync()
                host.close()

    def _warm_and_capture(self) -> None:
        """Kernels are loaded and engines choose their tactics in the first run, which cannot be captured."""
        self._enqueue()
        self._main.sync()
        builder = self._main.create_graph_builder()
        try:
            builder.begin_building("thread_local")
            self._enqueue()
            self._graph = builder.end_building().complete()
            self._graph.upload(self._main)
        except Exception as error:  # an engine that synchronises or allocates cannot be captured
            self._graph = None
            warnings.warn(f"this frame is launched stage by stage, its CUDA graph failed: {error}", stacklevel=2)

    def run(self, photo: Array, text: FloatArray) -> tuple[Array, FloatArray | None, float]:
        """Labels, scores and the milliseconds between both ends of the device's work."""
        if self._text is not text:
            self._on_host["text host"].array[...] = text
            self._on_host["text host"].upload(self._on_device["text"], self._main)
            self._text = text
        self._on_host["photo host"].array[...] = photo
        self._main.record(self._began)
        if self._graph is not None:
            self._graph.launch(self._main)
        else:
            self._enqueue()
        self._main.record(self._ended)
        self._main.sync()
        winning = self._on_host["scores host"].array.copy() if self._scores else None
        return self._on_host["labels host"].array.copy(), winning, float(self._ended - self._began)

    def _enqueue(self) -> None:
        """The whole frame: crops on the main stream, the whole image and the guidance beside them."""
        main, side, guide = self._main, self._side, self._guide
        self._on_host["photo host"].upload(self._on_device["photo"], main)
        self._preprocess()
        main.record(self._ready)
        side.wait(self._ready)
        self._run("backbone full", side)
        side.record(self._full_done)
        if self._spec.refinement:
            guide.wait(self._ready)
            self._run("sam_encoder", guide)
            guide.record(self._guide_done)
        self._run("backbone crops", main)
        main.wait(self._full_done)
        self._merge()
        if self._spec.early_refinement == "after_merge":
            self._run("anyup", main)
        self._run("correlation", main)
        if self._spec.refinement:
            main.wait(self._guide_done)
            self._run("refinement", main)
            for site in (call.site for call in self._plan.calls if call.stage == "decoder"):
                self._run(site, main)
        self._label()
        self._on_host["labels host"].download(self._on_device["labels"], main)
        if self._scores:
            self._on_host["scores host"].download(self._on_device["scores"], main)

    def _run(self, site: str, stream: Any) -> None:
        call = self._calls[site]
        bound = self._contexts[call.context]
        for tensor, name in (*call.inputs.items(), *call.outputs.items()):
            buffer = self._on_device[name]
            bound.address({tensor: buffer.address + call.offsets.get(tensor, 0) * buffer.dtype.itemsize})
        bound.enqueue(int(stream.handle))

    def _address(self, name: str) -> int:
        return self._on_device[name].address

    def _preprocess(self) -> None:
        geometry, photo = self._spec.geometry, self._on_device["photo"]
        common: dict[str, Any] = {"shape": photo.shape[:2], "color": self._color, "stream": int(self._main.handle)}
        views = {"size": geometry.image_size, "crop": geometry.crop_size, "stride": geometry.stride}
        cuda_api.preprocess(photo.address, self._address("image"), self._address("crops"), **views, **common)
        if "sam image" in self._on_device:
            size = self._spec.sam_size
            cuda_api.preprocess(photo.address, self._address("sam image"), 0, size=size, crop=None, **common)

    def _merge(self) -> None:
        shape = self._on_device["features crops"].shape
        cuda_api.lga_merge(
            self._address("features crops"),
            self._address("features full"),
            self._address("merged"),
            shape=(shape[0], shape[1], shape[2]),
            stride=self._spec.geometry.token_stride,
            stream=int(self._main.handle),
        )

    def _label(self) -> None:
        """Of the logits, or in the training-free pipeline of the cosines with the local half."""
        if self._spec.refinement:
            logits, strides = self._on_device["logits"], None
            address, (classes, height, width) = logits.address, logits.shape
        else:
            cosines = self._on_device["correlation"]
            classes, _, height, width = cosines.shape
            address = cosines.address + height * width * cosines.dtype.itemsize
            strides = (2 * height * width, width)
        cuda_api.upsample_argmax(
            address,
            self._address("labels"),
            self._address("scores") if self._scores else 0,
            shape=(classes, height, width),
            size=(self._plan.size.height, self._plan.size.width),
            strides=strides,
            stream=int(self._main.handle),
        )

    def close(self) -> None:
        self._main.sync()
        if self._graph is not None:
            self._graph.close()
        self._graph, self._contexts = None, {}
        for buffer in (*self._on_device.values(), *self._on_host.values()):
            buffer.close()
        self._on_device, self._on_host = {}, {}
