"""Images: what is taken as it is, without a copy, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runtime.errors import InputError
from runtime.images import as_pixels

PHOTO = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("view", [PHOTO, PHOTO[::-1], PHOTO[:, ::2], PHOTO[..., ::-1], PHOTO.transpose(1, 0, 2)])
def test_arrays_are_not_copied(view: np.ndarray) -> None:
    assert as_pixels(view) is view


def test_tensors_are_not_copied() -> None:
    tensor = torch.from_numpy(PHOTO.copy())
    pixels = as_pixels(tensor)
    assert np.array_equal(pixels, PHOTO)
    tensor[0, 0, 0] = 255 - tensor[0, 0, 0]
    assert pixels[0, 0, 0] == tensor[0, 0, 0]


def test_strided_tensor() -> None:
    chw = torch.from_numpy(PHOTO).permute(2, 0, 1).contiguous()
    assert np.array_equal(as_pixels(chw.permute(1, 2, 0)), PHOTO)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_pil_images_become_rgb(mode: str) -> None:
    picture = Image.fromarray(PHOTO).convert(mode)
    pixels = as_pixels(picture)
    assert pixels.shape == PHOTO.shape
    assert np.array_equal(pixels, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (PHOTO.astype(np.float32) / 255, r"dtype float32; expected uint8; scale to 0..255 and convert with .astype"),
        (PHOTO.astype(np.int64), r"dtype int64; expected uint8$"),
        (PHOTO.astype(bool), r"dtype bool; expected uint8$"),
        (PHOTO.astype(object), r"dtype object; expected uint8$"),
        (PHOTO[..., 0], r"shape \(6, 5\); expected \(H, W, 3\).*convert greyscale or alpha to RGB first"),
        (PHOTO[..., :1], r"shape \(6, 5, 1\); expected \(H, W, 3\).*convert greyscale"),
        (np.concatenate([PHOTO, PHOTO[..., :1]], axis=2), r"shape \(6, 5, 4\); .* alpha to RGB first"),
        (PHOTO.transpose(2, 0, 1), r"shape \(3, 6, 5\); expected \(H, W, 3\) with colour channels last"),
        (PHOTO[None], r"shape \(1, 6, 5, 3\); expected \(H, W, 3\)"),
        (PHOTO[:0], r"shape \(0, 5, 3\); expected at least one pixel"),
        (PHOTO[:, :0], r"shape \(6, 0, 3\); expected at least one pixel"),
        (np.array(3, np.uint8), r"shape \(\); expected \(H, W, 3\)"),
        (None, "image is a NoneType; expected a numpy array, a PIL image or a DLPack tensor"),
        ("photo.jpg", "image is a str; expected a numpy array"),
        (b"bytes", "image is a bytes"),
        ((PHOTO, PHOTO), "image is a tuple"),
        (torch.zeros(6, 5, 3), "dtype float32; expected uint8"),
        (torch.zeros(6, 5, 3, dtype=torch.bfloat16), r"cannot be shared with the CPU \(.*\); copy it there first"),
        (torch.zeros(6, 5, 3, dtype=torch.uint8, device="meta"), r"cannot be shared with the CPU .* tensor.cpu\(\)"),
        (Image.new("RGB", (0, 4)), "expected at least one pixel"),
    ],
)
def test_refused(image: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        as_pixels(image)
    assert "\n" not in str(caught.value)
