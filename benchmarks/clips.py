"""Tabletop scenes that move, with the class of every pixel of every frame known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from benchmarks.scenes import Pixels, make_scene

SPLIT: Final = "test"
Frame = tuple[Pixels, Pixels]  # (S, S, 3) RGB and (S, S) labels
Clip = Iterable[Frame]


def moving_object(seed: int, frames: int, size: int) -> Iterator[Frame]:
    """The camera stands still, its noise is new in each frame, and one object crosses the table."""
    for frame in range(frames):
        scene = make_scene(seed, size, SPLIT, frame)
        yield scene.image, scene.labels


def moving_camera(seed: int, frames: int, size: int) -> Iterator[Frame]:
    """A window on a scene half as large again goes to and fro, a hundredth of its width a frame: nothing stays."""
    scene = make_scene(seed, size + size // 2, SPLIT)
    room, top = size // 2, size // 4
    for frame in range(frames):
        way = frame * size // 100 % (2 * room)
        left = min(way, 2 * room - way)
        window = slice(top, top + size), slice(left, left + size)
        yield scene.image[window], scene.labels[window]


CLIPS: Final[dict[str, Callable[[int, int, int], Iterator[Frame]]]] = {
    "moving object": moving_object,
    "moving camera": moving_camera,
}
