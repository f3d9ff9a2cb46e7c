"""The compiled CUDA kernels, computed by the CPU's on the addresses they are given, when the stream gets there."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from fake_cuda import Stream, alive

import kernels


def array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    assert alive(address), "a kernel on freed memory"
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


def preprocess(
    red: int,
    height: int,
    width: int,
    pitch: int,
    pixel: int,
    step: int,
    size: int,
    crop: int,
    stride: int,
    antialias: bool,
    storage: int,
    image: int,
    crops: int,
    stream: int,
) -> None:
    assert (pixel, antialias, storage) == (3, False, 0)
    photo, color = (red, "rgb") if step == 1 else (red - 2, "bgr")

    def work() -> None:
        flat = array(photo, (pitch * (height - 1) + 3 * width,), np.uint8)
        pixels = np.lib.stride_tricks.as_strided(flat, (height, width, 3), (pitch, 3, 1))
        whole, parts = kernels.preprocess(pixels, size=size, crop=crop or None, stride=stride, color=color)
        array(image, whole.shape, np.float32)[...] = whole
        if parts is not None:
            array(crops, parts.shape, np.float32)[...] = parts

    Stream.by_handle[stream].enqueue(work)


def lga_merge(
    crop_features: int,
    full_features: int,
    per_axis: int,
    crop_grid: int,
    stride: int,
    channels: int,
    storage: int,
    normalize: bool,
    channels_first: bool,
    merged: int,
    stream: int,
) -> None:
    assert (storage, normalize, channels_first) == (0, False, False)
    grid = (per_axis - 1) * stride + crop_grid

    def work() -> None:
        local = array(crop_features, (per_axis**2, crop_grid**2, channels), np.float32)
        whole = array(full_features, (grid * grid, channels), np.float32)
        array(merged, (grid * grid, channels), np.float32)[...] = kernels.lga_merge(local, whole, stride=stride)

    Stream.by_handle[stream].enqueue(work)


def upsample_argmax(
    logits: int,
    classes: int,
    height: int,
    width: int,
    class_stride: int,
    row_stride: int,
    storage: int,
    out_height: int,
    out_width: int,
    label_bytes: int,
    labels: int,
    scores: int,
    prune: bool,
    stream: int,
) -> None:
    assert (storage, row_stride) == (0, width)

    def work() -> None:
        extent = (classes - 1) * class_stride + height * width
        flat = array(logits, (extent,), np.float32)
        strides = (4 * class_stride, 4 * width, 4)
        values = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, (classes, height, width), strides))
        found, winning = kernels.upsample_argmax(values, size=(out_height, out_width), scores=True)
        array(labels, found.shape, f"u{label_bytes}")[...] = found
        if scores:
            array(scores, winning.shape, np.float32)[...] = winning

    Stream.by_handle[stream].enqueue(work)


def device_count() -> int:
    return 1
