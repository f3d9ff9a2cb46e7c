"""Table, wall and floor of a scene: where they are in the picture, and their textures.

Only additions, products, quotients and roots of arrays: IEEE 754 fixes those to the last bit, so that a seed
gives the same picture on every CPU. `sin`, `exp`, matrix products and OpenCV's warps and polygons would not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.scene_dice import Dice, direction
from benchmarks.scene_vocabulary import FLOOR, TABLE, WALL

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]  # float32; NumPy's stubs make float64 of float32 x float
Height = TypeVar("Height", float, Floats)

_TILE = 512  # texels a side; a power of two, so that `& (_TILE - 1)` repeats the texture
_VARIANTS = 3
_TEXTURES = {
    TABLE: ("wood", "cloth", "laminate"),
    WALL: ("plaster", "panels", "brick"),
    FLOOR: ("tiles", "carpet", "concrete"),
}
# Muted mid-tones: no object colour is near them, and in any light white stays lighter and black darker.
_TINTS = {
    TABLE: ((142, 112, 88), (122, 96, 76), (152, 134, 110), (134, 120, 106), (112, 98, 88)),
    WALL: ((142, 140, 136), (156, 144, 124), (132, 122, 110), (122, 128, 132), (148, 134, 128)),
    FLOOR: ((108, 108, 110), (128, 116, 102), (96, 100, 106), (118, 110, 98), (134, 128, 120)),
}
_EDGE, _EDGE_SHADE = 3, 0.62  # the table's front edge, a region of its own while it is drawn


@dataclass(frozen=True)
class View:
    """Where the camera looks. Lengths are in image sides from the centre, y down, in the camera's level frame."""

    size: int
    roll: tuple[float, float]  # cos and sin of the camera's roll
    horizon: float
    back: float  # y of the line where table meets wall
    front: float  # y of the table's front edge
    left: tuple[float, float]  # x of the table's left edge at the back and at y = 1
    right: tuple[float, float]
    skirting: float  # y of the line where wall meets floor
    thickness: float  # of the table top
    squash: float  # height of a circle that lies on the table, over its width

    def to_pixels(self, x: float, y: float) -> tuple[float, float]:
        cos, sin = self.roll
        half = self.size / 2
        return half + self.size * (x * cos - y * sin), half + self.size * (x * sin + y * cos)

    def span(self, y: Height) -> tuple[Height, Height]:
        """x of the table's left and right edge at height y."""
        share = (y - self.back) / (1.0 - self.back)
        (left, near_left), (right, near_right) = self.left, self.right
        return left + share * (near_left - left), right + share * (near_right - right)

    def level_frame(self) -> tuple[Floats, Floats]:
        """x and y of every pixel, (H, W) float32."""
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size - 0.5
        cos, sin = self.roll
        return axis * cos + (axis * sin)[:, None], (axis * cos)[:, None] - axis * sin


def draw_view(dice: Dice, size: int) -> View:
    """A random camera and table: floor in about half of the views, wall in most."""
    back = dice.uniform(-0.36, -0.12) if dice.chance(0.88) else -1.0
    drop = dice.uniform(0.3, 0.9)
    front, left, right = 1.0, (-1.5, -1.5), (1.5, 1.5)
    if dice.chance(0.35):
        front = dice.uniform(0.28, 0.41)
    if dice.chance(0.3):
        edge, lean = dice.uniform(0.2, 0.36), dice.uniform(0.0, 0.22)
        if dice.chance(0.5):
            left = (-edge, -edge - lean)
        else:
            right = (edge, edge + lean)
    return View(
        size=size,
        roll=direction(dice.uniform(-0.14, 0.14)),
        horizon=back - drop,
        back=back,
        front=front,
        left=left,
        right=right,
        skirting=back + dice.uniform(0.08, 0.3),
        thickness=dice.uniform(0.02, 0.05),
        squash=0.26 + 0.25 * drop,
    )


def draw_surfaces(dice: Dice, view: View) -> tuple[Pixels, Pixels]:
    """(H, W, 3) uint8 RGB without light or shadow, and (H, W) uint8 labels."""
    size = view.size
    x, y = view.level_frame()
    labels = np.where(y < view.skirting, np.uint8(WALL), np.uint8(FLOOR))
    left, right = view.span(np.minimum(y, view.front))  # the edge of the table top hangs straight down
    table = (y >= view.back) & (y < view.front + view.thickness) & (x >= left) & (x <= right)
    labels[table] = TABLE
    labels[table & (y >= view.front)] = _EDGE  # table too, but darker
    colors = np.empty((4, 256, 3), np.uint8)  # of each region's texture tones
    tones = np.empty((size, size), np.uint16)
    for surface in (TABLE, WALL, FLOOR):
        palette = _palette(dice, surface)
        texture = _texture(dice.pick(_TEXTURES[surface]), dice.integer(0, _VARIANTS - 1))
        turn = direction(dice.uniform(-0.5, 0.5))
        scale, offset = dice.uniform(0.8, 1.3), dice.integer(0, _TILE - 1)
        for region, shade in ((surface, 1.0), (_EDGE, _EDGE_SHADE)) if surface == TABLE else ((surface, 1.0),):
            colors[region] = np.rint(palette * np.float32(shade))
            inside = labels == region
            u, v = x[inside], y[inside]
            if surface == WALL:
                u, v = u * (scale * _TILE), v * (scale * _TILE)
            else:  # a plane under the horizon: texels grow towards the camera
                depth = np.float32(0.7 * scale * _TILE) / np.maximum(v - view.horizon, np.float32(0.05))
                u, v = u * depth, depth * (0.4 + 0.6 * view.squash)
                u, v = u * turn[0] - v * turn[1], u * turn[1] + v * turn[0]
            texel = (v.astype(np.int32) + offset & _TILE - 1) * _TILE + (u.astype(np.int32) & _TILE - 1)
            tones[inside] = texture.take(texel).astype(np.uint16) + 256 * region
    labels[labels == _EDGE] = TABLE
    return colors.reshape(-1, 3).take(tones, axis=0), labels


def _palette(dice: Dice, surface: int) -> Floats:
    """(256, 3) float32: the colour of each tone of a texture."""
    tint = np.array([value + dice.uniform(-4, 4) for value in dice.pick(_TINTS[surface])], np.float32)
    contrast = dice.uniform(0.25, 0.5)
    tones = np.arange(256, dtype=np.float32)[:, None] / 255 - 0.5
    return tint * (1 + contrast * tones)


@cache
def _texture(kind: str, variant: int) -> Pixels:
    """(512, 512) uint8 tones that repeat without a seam; flat, for `take`."""
    dice = Dice(512, variant, *kind.encode())
    row, column = np.mgrid[:_TILE, :_TILE]
    grain = 0.5 * _noise(dice, 128, 128) + 0.5 * _noise(dice, 256, 256)
    cloud = 0.6 * _noise(dice, 6, 6) + 0.4 * _noise(dice, 24, 24)
    if kind == "wood":
        plank = row // 64
        shift = dice.octets(8)[plank].astype(np.int64) * 2
        streaks = 0.55 * _noise(dice, 128, 4) + 0.45 * _noise(dice, 256, 8)
        tone = 0.7 * streaks[row, (column + shift) % _TILE] + 0.3 * dice.octets(8)[plank] / 255
        tone = np.where(row % 64 < 2, 0.1, tone)
    elif kind == "cloth":
        weave = np.where((row // 4 + column // 4) % 2 == 0, row % 4, column % 4) / 3  # threads over and under
        tone = 0.3 * weave + 0.35 * grain + 0.35 * cloud
    elif kind == "laminate":
        flecks = _noise(dice, 128, 128)
        tone = 0.5 * cloud + 0.15 * grain + np.where(flecks > 0.82, 0.35, np.where(flecks < 0.16, -0.2, 0.15))
    elif kind == "plaster":
        tone = 0.55 * cloud + 0.45 * grain
    elif kind == "panels":
        tone = np.where(column % 64 < 3, 0.12, 0.45 * cloud + 0.2 * grain + 0.25)
    elif kind == "brick":
        course = row // 32
        along = column + 32 * (course % 2)
        brick = dice.octets(16, 8)[course, along // 64 % 8] / 255
        joint = (row % 32 < 3) | (along % 64 < 3)
        tone = np.where(joint, 0.85, 0.35 * brick + 0.3 * grain)
    elif kind == "tiles":
        tile = dice.octets(8, 8)[row // 64, column // 64] / 255
        tone = np.where((row % 64 < 3) | (column % 64 < 3), 0.08, 0.3 * tile + 0.3 * cloud + 0.1 * grain + 0.25)
    elif kind == "carpet":
        tone = 0.8 * (0.4 * _noise(dice, 256, 256) + 0.6 * _noise(dice, 512, 512)) + 0.2 * cloud
    else:  # concrete
        tone = 0.75 * cloud + 0.15 * grain + 0.1 * _noise(dice, 512, 512)
    return np.rint(255 * np.clip(tone, 0, 1)).astype(np.uint8).ravel()


def _noise(dice: Dice, rows: int, columns: int) -> npt.NDArray[np.float64]:
    """(512, 512) float64, 0 to 1: random values on a lattice of rows x columns, smoothly joined."""
    values = dice.octets(rows, columns) / 255
    for axis, cells in enumerate((rows, columns)):
        place = np.arange(_TILE) * (cells / _TILE)
        cell = place.astype(np.int64)
        share = place - cell
        share = (share * share * (3 - 2 * share)).reshape((-1, 1) if axis == 0 else (1, -1))
        here, there = values.take(cell, axis), values.take((cell + 1) % cells, axis)
        values = here + share * (there - here)
    return values
