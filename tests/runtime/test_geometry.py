"""Geometry: derived numbers, and sizes that do not fit together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from runtime.geometry import Geometry


@pytest.mark.parametrize(
    ("sizes", "grid", "crop_grid", "token_stride", "per_side"),
    [
        ((640, 384, 256), 40, 24, 16, 2),
        ((640, 384, 128), 40, 24, 8, 3),
        ((320, 192, 128), 20, 12, 8, 2),
        ((96, 96, 32), 6, 6, 2, 1),
        ((64, 32, 32), 4, 2, 2, 2),
        ((64, 16, 16), 4, 1, 1, 4),
    ],
)
def test_derived(sizes: tuple[int, int, int], grid: int, crop_grid: int, token_stride: int, per_side: int) -> None:
    geometry = Geometry(image_size=sizes[0], crop_size=sizes[1], stride=sizes[2])
    derived = (geometry.grid, geometry.crop_grid, geometry.token_stride, geometry.crops_per_side, geometry.crops)
    assert derived == (grid, crop_grid, token_stride, per_side, per_side**2)
    # The last crop ends where the image ends.
    assert (geometry.crops_per_side - 1) * geometry.stride + geometry.crop_size == geometry.image_size


def test_the_papers_sizes_are_the_default() -> None:
    assert Geometry() == Geometry(image_size=640, crop_size=384, stride=256, patch_size=16)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"image_size": 630}, "image_size is 630; expected a multiple of patch_size 16"),
        ({"crop_size": 380}, "crop_size is 380; expected a multiple"),
        ({"stride": 100}, "stride is 100; expected a multiple"),
        ({"crop_size": 656}, "crop_size 656 is larger than image_size 640"),
        ({"stride": 192}, "stride 192 does not tile the image: image_size - crop_size = 256"),
        ({"image_size": 64, "crop_size": 16, "stride": 48}, "stride 48 leaves gaps between crops of 16"),
        ({"image_size": 0}, "greater than 0"),
        ({"stride": -16}, "greater than 0"),
        ({"patch_size": 0}, "greater than 0"),
        ({"window": 3}, "Extra inputs"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, int], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Geometry(**sizes)


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Geometry().stride = 16  # type: ignore[misc]
