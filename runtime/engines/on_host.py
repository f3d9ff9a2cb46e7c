"""Any engine on the GPU with host arrays around it."""

from __future__ import annotations

from runtime.cuda.device import Device, DeviceTensor, PinnedArray
from runtime.engines.base import Array, Binding, DeviceEngine, Shapes, Tensors, contiguous


class HostEngine:
    """A `DeviceEngine` as an `Engine`: for one stage alone. Frames run through `runtime.cuda.pipeline`."""

    def __init__(self, opened: DeviceEngine) -> None:
        self._device = Device()
        self._stream = self._device.stream()
        self._opened = opened
        self._site: tuple[Shapes, Binding, dict[str, tuple[PinnedArray, DeviceTensor]]] | None = None
        self.precision = opened.precision

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        """Raises EngineError where the engine cannot take these shapes or fails."""
        self._device.enter()
        arrays = contiguous(inputs)
        bound, buffers = self._bind({name: array.shape for name, array in arrays.items()}, arrays)
        for name, array in arrays.items():
            host, device = buffers[name]
            host.array[...] = array
            host.upload(device, self._stream)
        bound.enqueue(int(self._stream.handle))
        for name in bound.outputs:
            buffers[name][0].download(buffers[name][1], self._stream)
        self._stream.sync()
        return {name: buffers[name][0].array.copy() for name in bound.outputs}

    def _bind(self, shapes: Shapes, arrays: Tensors) -> tuple[Binding, dict[str, tuple[PinnedArray, DeviceTensor]]]:
        """The last shapes are kept: a stage alone is called with one shape after another only in comparisons."""
        if self._site is None or self._site[0] != shapes:
            bound = self._opened.bind(shapes, int(self._stream.handle))
            self._release()
            specs = {name: (array.shape, array.dtype) for name, array in arrays.items()} | dict(bound.outputs)
            buffers = {name: (self._device.pinned(*one), self._device.tensor(*one)) for name, one in specs.items()}
            self._device.sync()
            bound.address({name: device.address for name, (_, device) in buffers.items()})
            self._site = shapes, bound, buffers
        return self._site[1], self._site[2]

    def close(self) -> None:
        """Frees the buffers; the device's engine stays open, it may serve others."""
        self._stream.sync()
        self._release()

    def _release(self) -> None:
        for pair in (self._site[2] if self._site else {}).values():
            for buffer in pair:
                buffer.close()
        self._site = None
