"""Photos that are on the device already, and results that stay there: no copy either way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.cuda.device import Device, DeviceTensor
from runtime.errors import InputError
from runtime.images import DLPACK_CUDA


@dataclass(frozen=True)
class DevicePhoto:
    """(H, W, 3) uint8 on the device. `pitch` is the bytes from row to row, `owner` keeps the memory alive."""

    address: int
    shape: tuple[int, int]
    pitch: int
    owner: Any


def device_photo(device: Device, image: Any, stream: Any) -> DevicePhoto:
    """Raises InputError: another type, dtype, rank, channel count or layout than a row of RGB pixels after another."""
    try:
        view = device.view(image, stream)
    except (BufferError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"image of type {type(image).__name__} cannot be shared: {error}") from None
    shape = tuple(view.shape)
    if view.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise InputError(f"image is {shape} {view.dtype} on the device; expected (H, W, 3) uint8")
    pitch, pixel, channel = view.strides or (3 * shape[1], 3, 1)
    if (pixel, channel) != (3, 1) or pitch < 3 * shape[1]:
        raise InputError(f"image has strides {(pitch, pixel, channel)}; expected pixels side by side, (pitch, 3, 1)")
    return DevicePhoto(int(view.ptr), (shape[0], shape[1]), int(pitch), view)


class DeviceArray:
    """A result in device memory, which torch.from_dlpack, cupy.asarray and numba.cuda.as_cuda_array take as it is.

    It is complete: nothing need be waited for. The memory is freed with this object, so keep it while it is in use;
    DLPack consumers keep it themselves.
    """

    def __init__(self, device: Device, tensor: DeviceTensor) -> None:
        self._device, self._tensor = device, tensor
        self.shape, self.dtype = tensor.shape, tensor.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._tensor.address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }

    def __dlpack__(self, **options: Any) -> Any:
        return self._device.share(self._tensor).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CUDA[0], 0

    def to_host(self) -> np.ndarray[Any, Any]:
        """A copy in NumPy."""
        self._device.enter()
        host, stream = self._device.pinned(self.shape, self.dtype), self._device.stream()
        try:
            host.download(self._tensor, stream)
            stream.sync()
            return host.array.copy()
        finally:
            host.close()
