"""From the photo on the device to the labels: two kernels of ours and, between them, one graph launch."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kernels import cuda_api
from runtime.cuda.arrays import DevicePhoto
from runtime.cuda.device import Device, DeviceTensor, PinnedArray
from runtime.cuda.plan import Call, FramePlan
from runtime.cuda.timing import Mark, unmarked
from runtime.engines.base import Array, Binding, DeviceEngine
from runtime.manifest import PipelineSpec
from runtime.pipeline import FloatArray
from runtime.reuse import Refresh
from runtime.rope import rope_tables

MOST_GRAPHS = 8  # kept for each class bucket: one, and with `Reuse` one for each set of views


@dataclass(frozen=True)
class Streams:
    """`main` carries frame after frame; `side` and `guide` run beside it within one; copies have their own."""

    main: Any
    side: Any
    guide: Any
    up: Any
    down: Any


class Views(NamedTuple):
    """What the backbone looks at in this frame; of the others the features of an earlier frame are kept."""

    full: bool
    crops: tuple[int, ...]


class Frame:
    """Buffers, bound engines and graphs for one number of classes, of which the last may only fill it up.

    Nothing depends on the size of the photo. Addresses never change.
    """

    def __init__(
        self,
        device: Device,
        streams: Streams,
        spec: PipelineSpec,
        engines: Mapping[str, DeviceEngine],
        plan: FramePlan,
    ) -> None:
        self._spec, self._plan, self._streams, self._engines = spec, plan, streams, engines
        self._ready, self._full_done, self._guide_done = device.timer(), device.timer(), device.timer()
        self._calls = {call.site: call for call in plan.calls}
        self._captures = all(engine.captures for engine in engines.values())
        self._text: Array | None = None
        self._classes = 0
        self._buffers: dict[str, DeviceTensor] = {}
        self._on_host: dict[str, PinnedArray] = {}
        self._bound: dict[Any, Binding] = {}
        self._graphs: OrderedDict[Views, Any] = OrderedDict()
        self.kept: Refresh | None = None  # the frame of a stream whose features lie in the buffers
        self.all_views = Views(True, tuple(range(spec.geometry.crops)))
        try:
            for one in plan.buffers:
                self._buffers[one.name] = device.tensor(one.shape, np.dtype(np.float32))
            for name in ("text", "present"):
                self._on_host[name] = device.pinned(self._buffers[name].shape, np.dtype(np.float32))
            device.sync()
            for call in plan.calls:
                self._bind(call)
            self._load_tables(device)
        except BaseException:
            self.close()
            raise

    def _bind(self, call: Call) -> Binding:
        """Calls that run one after the other share a context; crop by crop, they are bound when first needed."""
        if call.context not in self._bound:
            stream = int(self._stream_of(call.site).handle)
            self._bound[call.context] = self._engines[call.stage].bind(call.shapes, stream)
        return self._bound[call.context]

    def _stream_of(self, site: str) -> Any:
        return {"backbone full": self._streams.side, "sam_encoder": self._streams.guide}.get(site, self._streams.main)

    def _load_tables(self, device: Device) -> None:
        """Rotary tables, once."""
        geometry, main = self._spec.geometry, self._streams.main
        for view, grid in (("crops", geometry.crop_grid), ("full", geometry.grid)):
            tables = rope_tables(self._spec.rope_periods, (grid, grid), self._spec.prefix_tokens)
            for name, table in zip(("rope_sin", "rope_cos"), tables, strict=True):
                host = device.pinned(table.shape, table.dtype)
                device.sync()
                host.array[...] = table
                host.upload(self._buffers[f"{name} {view}"], main)
                main.sync()
                host.close()

    def set_text(self, text: FloatArray) -> None:
        """Class embeddings (K, 2, C): swaps a buffer, no graph. A frame in flight still sees its own."""
        if self._text is text:
            return
        self._streams.main.sync()  # the last upload has left the host's buffers
        count = len(text)
        self._on_host["text"].array[:count] = text
        self._on_host["text"].array[count:] = text[0]  # no zeros: the length of a vector is divided by
        self._on_host["present"].array[...] = np.arange(self._plan.classes) < count
        for name, host in self._on_host.items():
            host.upload(self._buffers[name], self._streams.main)
        self._text, self._classes = text, count

    def preprocess(self, photo: DevicePhoto, color: str, mark: Mark) -> None:
        geometry, main = self._spec.geometry, self._streams.main
        common: dict[str, Any] = {
            "shape": photo.shape,
            "pitch": photo.pitch,
            "color": color,
            "stream": int(main.handle),
        }
        views = {"size": geometry.image_size, "crop": geometry.crop_size, "stride": geometry.stride}
        with mark("preprocess", "preprocess", main):
            cuda_api.preprocess(photo.address, self._address("image"), self._address("crops"), **views, **common)
            if "sam image" in self._buffers:
                size = self._spec.sam_size
                cuda_api.preprocess(photo.address, self._address("sam image"), 0, size=size, crop=None, **common)

    def warm(self) -> None:
        """Loads kernels, chooses tactics and captures the graph before the first frame."""
        self.kept = None
        if self._captures:
            self._graph(self.all_views)
        else:
            self._enqueue(self.all_views, unmarked)
        self._streams.main.sync()

    def run(self, views: Views, mark: Mark) -> None:
        """The engines: as one graph, or launch by launch where it is measured or an engine cannot be captured."""
        graph = self._graph(views) if self._captures and mark is unmarked else None
        if graph is None:
            self._enqueue(views, mark)
        else:
            graph.launch(self._streams.main)

    def _graph(self, views: Views) -> Any:
        if views not in self._graphs:
            while len(self._graphs) >= MOST_GRAPHS:
                self._streams.main.sync()
                _close(self._graphs.popitem(last=False)[1])
            self._graphs[views] = self._capture(views)
        self._graphs.move_to_end(views)
        return self._graphs[views]

    def _capture(self, views: Views) -> Any:
        """Kernels are loaded and engines choose their tactics in the first run, which cannot be captured."""
        main = self._streams.main
        self._enqueue(views, unmarked)
        main.sync()
        builder = main.create_graph_builder()
        try:
            builder.begin_building("thread_local")
            self._enqueue(views, unmarked)
            graph = builder.end_building().complete()
            graph.upload(main)
            return graph
        except Exception as error:  # an engine that synchronises or allocates cannot be captured
            warnings.warn(f"frames are launched stage by stage, their CUDA graph failed: {error}", stacklevel=2)
            return None

    def _enqueue(self, views: Views, mark: Mark) -> None:
        """Crops on the main stream, the whole image and the guidance beside them."""
        main, side, guide = self._streams.main, self._streams.side, self._streams.guide
        calls = self._calls
        main.record(self._ready)
        if views.full:
            side.wait(self._ready)
            self._call(calls["backbone full"], side, mark)
            side.record(self._full_done)
        if self._spec.refinement:
            guide.wait(self._ready)
            self._call(calls["sam_encoder"], guide, mark)
            guide.record(self._guide_done)
        whole = views.crops == self.all_views.crops
        for call in [calls["backbone crops"]] if whole else [self._plan.single_crops[i] for i in views.crops]:
            self._call(call, main, mark)
        if views.full:
            main.wait(self._full_done)
        with mark("lga_merge", "lga_merge", main):
            self._merge()
        for site in ("anyup", "correlation"):
            if site in calls:
                self._call(calls[site], main, mark)
        if self._spec.refinement:
            main.wait(self._guide_done)
            for site in (site for site in calls if site == "refinement" or site.startswith("decoder")):
                self._call(calls[site], main, mark)

    def _call(self, call: Call, stream: Any, mark: Mark) -> None:
        bound = self._bind(call)
        addresses = {}
        for tensor, name in (*call.inputs.items(), *call.outputs.items()):
            buffer = self._buffers[name]
            addresses[tensor] = buffer.address + call.offsets.get(tensor, 0) * buffer.dtype.itemsize
        bound.address(addresses)
        with mark(call.site, call.stage, stream):
            bound.enqueue(int(stream.handle))

    def _address(self, name: str) -> int:
        return self._buffers[name].address

    def _merge(self) -> None:
        shape = self._buffers["features crops"].shape
        cuda_api.lga_merge(
            self._address("features crops"),
            self._address("features full"),
            self._address("merged"),
            shape=(shape[0], shape[1], shape[2]),
            stride=self._spec.geometry.token_stride,
            stream=int(self._streams.main.handle),
        )

    def label(self, labels: int, scores: int, size: tuple[int, int], mark: Mark) -> None:
        """At these addresses; scores: 0 for none. Of the logits, or without refinement of the cosines with the local
        half. What only fills the batch up comes last and is left out."""
        if self._spec.refinement:
            address, strides = self._address("logits"), None
            height, width = self._buffers["logits"].shape[1:]
        else:
            height, width = self._buffers["correlation"].shape[2:]
            address, strides = self._address("correlation") + height * width * 4, (2 * height * width, width)
        main = self._streams.main
        with mark("upsample_argmax", "upsample_argmax", main):
            cuda_api.upsample_argmax(
                address,
                labels,
                scores,
                shape=(self._classes, height, width),
                size=size,
                strides=strides,
                stream=int(main.handle),
            )

    def close(self) -> None:
        """Waits for the device and frees graphs, contexts and buffers."""
        self._streams.main.sync()
        for graph in self._graphs.values():
            _close(graph)
        self._graphs.clear()
        self._bound.clear()
        for buffer in (*self._buffers.values(), *self._on_host.values()):
            buffer.close()
        self._buffers, self._on_host = {}, {}


def _close(graph: Any) -> None:
    if graph is not None:
        graph.close()
