"""The six shapes as small pictures with an exact outline: analytic or polygon outlines, shaded and coloured.

A shape lives in the square -1 to 1 (x right, y down) and is drawn on a grid of several samples a pixel.
Array arithmetic is limited to what IEEE 754 fixes to the last bit (see scene_surfaces).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.scene_dice import Dice, direction, rounded
from benchmarks.scene_vocabulary import COLORS, PATTERN_PAIRS, PATTERNS

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]  # float32; NumPy's stubs make float64 of float32 x float
Point = tuple[float, float]

_AMBIENT = 0.52


@dataclass(frozen=True)
class Lamp:
    """Unit vector towards the light: x right, y down, z to the camera."""

    x: float
    y: float
    z: float

    def shade(self, x: float, y: float, z: float) -> float:
        """Brightness of a flat face with this unit normal."""
        return _AMBIENT + (1 - _AMBIENT) * max(0.0, x * self.x + y * self.y + z * self.z)


@dataclass
class Grid:
    """Sample positions, float32 (N, N), and what a shape says of each."""

    x: Floats
    y: Floats
    mask: Pixels  # 1 inside the outline
    shade: Floats  # factor of the colour
    gloss: Floats  # 0 to 1, added as white
    u: Floats  # where the sample lies on the surface, for patterns
    v: Floats


@dataclass(frozen=True)
class Sprite:
    """A drawn object: what it adds to each pixel, before the light of the scene."""

    color: npt.NDArray[np.uint16]  # (n, n, 3) RGB summed over the samples inside
    cover: npt.NDArray[np.uint16]  # (n, n) samples inside
    samples: int  # a pixel has
    mask: npt.NDArray[np.bool_]  # (n, n) the object's pixels: covered by half or more

    def paste(self, image: Pixels, left: int, top: int) -> None:
        """Blends the object into (H, W, 3) `image`; integers only, so exact."""
        side = len(self.cover)
        patch = image[top : top + side, left : left + side]
        behind = patch * (self.samples - self.cover)[..., None]
        patch[:] = (behind + self.color + self.samples // 2) // self.samples


def draw_sprite(dice: Dice, name: str, extent: float, roll: Point, squash: float, lamp: Lamp) -> Sprite:
    """Draws one object, e.g. "striped ring", about `extent` pixels wide or high (the longer of the two).

    Args:
        dice: decides yaw, tilt, exact colours and pattern.
        name: an appearance word and a shape.
        extent: longer side in pixels.
        roll: cos and sin of the camera's roll.
        squash: height over width of a circle that lies on the table.
        lamp: direction of the light.
    """
    appearance, shape = name.split()
    per_side = 2 if extent >= 28 else 4
    side = math.ceil(extent) + 4
    axis = ((np.arange(side * per_side, dtype=np.float32) + 0.5) / per_side - side / 2) / np.float32(extent / 2)
    x, y = np.broadcast_to(axis, (len(axis),) * 2), np.broadcast_to(axis[:, None], (len(axis),) * 2)
    x, y = x * roll[0] + y * roll[1], y * roll[0] - x * roll[1]
    flat = np.zeros_like(x)
    grid = Grid(x, y, flat.astype(np.uint8), flat, flat, x, y)
    if shape == "cube":
        _cube(grid, dice, squash, lamp)
    elif shape == "ball":
        _ball(grid, lamp)
    elif shape == "cone":
        _cone(grid, squash, lamp)
    elif shape == "ring":
        _ring(grid, dice, lamp)
    else:
        outline = _star() if shape == "star" else _cross()
        _plate(grid, dice, lamp, outline, side * per_side, extent * per_side / 2, roll)
    painted = np.rint(np.minimum(_paint(grid, dice, appearance, extent), 255))
    color = painted.astype(np.uint16) * grid.mask[..., None]
    cover = grid.mask.astype(np.uint16)
    for _ in range(per_side.bit_length() - 1):
        color, cover = _halved(color), _halved(cover)
    return Sprite(color, cover, per_side**2, 2 * cover >= per_side**2)


def _halved(sums: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    pairs = sums[0::2] + sums[1::2]
    return pairs[:, 0::2] + pairs[:, 1::2]


# --- shapes


def _ball(grid: Grid, lamp: Lamp) -> None:
    reach = grid.x * grid.x + grid.y * grid.y
    grid.mask = (reach <= 1).astype(np.uint8)
    _round_shade(grid, grid.x, grid.y, np.sqrt(np.maximum(1 - reach, 0)), lamp)
    bend = 1 + 0.4 * reach  # a pattern on a sphere crowds together near the outline
    grid.u, grid.v = grid.x * bend, grid.y * bend


def _cone(grid: Grid, squash: float, lamp: Lamp) -> None:
    x, y, half = grid.x, grid.y, 0.82  # half: of the base's width
    flat = min(squash, 0.46)  # seen from higher up a cone is a disc, and could be a ball
    base = 1 - half * flat
    # Where the straight sides touch the ellipse: stretched to a circle, the apex is `distance` from its centre.
    distance = (1 + base) / flat
    cos = half / distance
    touch_x, touch_y = half * math.sqrt(1 - cos * cos), base - flat * half * cos
    slope = touch_x / (touch_y + 1)
    across = (y + 1) * slope
    ellipse = x * x + (y - base) * (y - base) * (1 / flat**2) <= half * half
    grid.mask = (ellipse | ((np.abs(x) <= across) & (y <= touch_y))).astype(np.uint8)
    side = np.clip(x / np.maximum(across, 0.01), -1, 1)
    facing = np.sqrt(1 - side * side)
    _round_shade(grid, 0.9 * side, -0.42, 0.9 * facing, lamp)
    grid.gloss = 0.6 * grid.gloss  # it runs from base to apex: at full strength a black cone would not be black
    grid.u, grid.v = x, y - flat * np.minimum(across, half) * facing  # rings around the cone sag in the middle


def _ring(grid: Grid, dice: Dice, lamp: Lamp) -> None:
    middle, tube = 0.71, 0.29
    turn, tilt = direction(dice.uniform(0, math.pi)), dice.uniform(0.82, 1.0)
    x, y = _turned(grid.x, grid.y, turn)
    tall = middle * tilt
    outer = _ellipse(x, y, middle + tube, tall + tube)
    inner = _ellipse(x, y, middle - tube, tall - tube)
    grid.mask = ((outer <= 1) & (inner > 1)).astype(np.uint8)
    centre = np.sqrt(np.maximum(_ellipse(x, y, middle, tall), 1e-6))
    bulge = np.clip((centre - 1) * (middle / tube), -1, 1)  # -1 at the hole's rim, 1 at the outer rim
    outward = bulge / np.maximum(np.sqrt(grid.x * grid.x + grid.y * grid.y), 1e-3)
    _round_shade(grid, grid.x * outward, grid.y * outward, np.sqrt(1 - bulge * bulge), lamp)


def _cube(grid: Grid, dice: Dice, squash: float, lamp: Lamp) -> None:
    cos, sin = direction(math.radians(dice.uniform(18, 72)))  # all three faces always show
    lift = rounded(math.sqrt(1 - squash * squash))
    # Screen positions of the edges from the near bottom corner: right, left and up.
    right, left, up = (cos, -sin * squash), (-sin, -cos * squash), (0.0, -lift)
    wide, high = cos + sin, lift + (cos + sin) * squash
    scale = 2 / max(wide, high)
    near = (-(cos - sin) / 2 * scale, high / 2 * scale)
    a, b, c = ((scale * px, scale * py) for px, py in (right, left, up))
    top = (near[0] + c[0], near[1] + c[1])
    # Each face: normal, corner, its two edges, and how much of the light counts, so that no two look alike.
    faces = (
        ((sin, squash * cos, lift * cos), near, a, c, 1.0),
        ((-cos, squash * sin, lift * sin), near, b, c, 0.84),
        ((0.0, -lift, squash), top, a, b, 1.1),
    )
    shade = np.zeros_like(grid.x)
    mask = np.zeros(grid.x.shape, bool)
    u, v = np.zeros_like(shade), np.zeros_like(shade)
    for normal, corner, first, second, share in faces:
        area = first[0] * second[1] - first[1] * second[0]
        dx, dy = grid.x - corner[0], grid.y - corner[1]
        s = (dx * second[1] - dy * second[0]) / area
        t = (dy * first[0] - dx * first[1]) / area
        face = (s >= -1e-4) & (s <= 1.0001) & (t >= -1e-4) & (t <= 1.0001) & ~mask
        mask |= face
        bright = min(1.05, share * lamp.shade(*normal))
        np.copyto(shade, np.float32(bright) - 0.08 * (1 - t), where=face)
        np.copyto(u, scale * s, where=face)
        np.copyto(v, scale * t, where=face)
    grid.mask, grid.shade, grid.u, grid.v = mask.astype(np.uint8), shade, u, v


def _plate(grid: Grid, dice: Dice, lamp: Lamp, outline: list[Point], side: int, unit: float, roll: Point) -> None:
    """A flat piece cut along `outline`, turned in its plane, with a side face of some depth."""
    turn, narrow = direction(dice.uniform(0, 2 * math.pi)), dice.uniform(0.86, 1.0)
    back = (dice.sign() * dice.uniform(0.08, 0.14), -dice.uniform(0.04, 0.1))
    corners = [((x * turn[0] - y * turn[1]) * narrow, x * turn[1] + y * turn[0]) for x, y in outline]
    # Fit front and back together into the square.
    xs, ys = ([p[i] for p in corners] + [p[i] + back[i] for p in corners] for i in (0, 1))
    fit = 2 / max(max(xs) - min(xs), max(ys) - min(ys))
    centre = ((max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2)
    front = [((x - centre[0]) * fit, (y - centre[1]) * fit) for x, y in corners]
    rear = [(x + back[0] * fit, y + back[1] * fit) for x, y in front]

    axis = (np.arange(side) + 0.5 - side / 2) / unit
    levels = np.zeros((side, side), np.uint8)  # brightness of the face at each sample; 0 outside

    def paint(points: list[Point], bright: float) -> None:
        placed = [(x * roll[0] - y * roll[1], x * roll[1] + y * roll[0]) for x, y in points]
        levels[_inside(axis, placed)] = round(200 * bright)

    for i, (x, y) in enumerate(front):
        j = (i + 1) % len(front)
        edge = (front[j][0] - x, front[j][1] - y)
        length = math.hypot(*edge)
        normal = (edge[1] / length, -edge[0] / length)  # outwards: corners run clockwise on the screen
        if normal[0] * back[0] + normal[1] * back[1] > 0:
            light = normal[0] * lamp.x + normal[1] * lamp.y
            paint([front[i], front[j], rear[j], rear[i]], 0.42 + 0.18 * light)
    paint(front, 0.35 + 0.65 * lamp.shade(0.0, -0.3, 0.95))
    grid.mask = (levels > 0).astype(np.uint8)
    grid.shade = levels.astype(np.float32) * (1 / 200) * (1 + 0.08 * (grid.x * lamp.x + grid.y * lamp.y))
    grid.u, grid.v = _turned(grid.x, grid.y, turn)


def _inside(axis: Floats, corners: list[Point]) -> npt.NDArray[np.bool_]:
    """(N, N): samples within a polygon, by counting its edges to their left.

    Not `cv2.fillPoly`: versions 4 and 5 disagree about the outline.
    """
    inside = np.zeros((len(axis), len(axis)), bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        first, last = np.searchsorted(axis, sorted((y0, y1)))
        if first < last:
            crossing = x0 + (axis[first:last] - y0) * ((x1 - x0) / (y1 - y0))
            inside[first:last] ^= axis > crossing[:, None]
    return inside


def _star() -> list[Point]:
    points = (direction(math.pi * (i / 5 - 0.5)) for i in range(10))
    return [(x * r, y * r) for (x, y), r in zip(points, (1.0, 0.4) * 5, strict=True)]


def _cross() -> list[Point]:
    arm = 0.33
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    corners: list[Point] = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


def _turned(x: Floats, y: Floats, turn: Point) -> tuple[Floats, Floats]:
    return x * turn[0] + y * turn[1], y * turn[0] - x * turn[1]


def _ellipse(x: Floats, y: Floats, wide: float, tall: float) -> Floats:
    return x * x * (1 / wide**2) + y * y * (1 / tall**2)


def _round_shade(grid: Grid, nx: Floats, ny: Floats | float, nz: Floats, lamp: Lamp) -> None:
    """Lambert shade and highlight of a curved surface with unit normals."""
    grid.shade = _AMBIENT + (1 - _AMBIENT) * np.maximum(nx * lamp.x + ny * lamp.y + nz * lamp.z, 0)
    half = math.sqrt(2 + 2 * lamp.z)  # the highlight is where the normal halves the angle from lamp to camera
    gloss = np.maximum((nx * lamp.x + ny * lamp.y + nz * (lamp.z + 1)) / half, 0)
    for _ in range(5):
        gloss = gloss * gloss
    grid.gloss = gloss


# --- colours and patterns


def _paint(grid: Grid, dice: Dice, appearance: str, extent: float) -> Floats:
    """(N, N, 3) float32 RGB of each sample."""
    shade = grid.shade
    if appearance not in PATTERNS:
        base: Floats = _shade_of(dice, appearance)
        if appearance == "white":  # in its own shadow it would be as grey as the table
            shade = 0.42 + 0.58 * shade
    else:
        pair = np.stack([_shade_of(dice, name) for name in dice.pick(PATTERN_PAIRS)])
        turn = direction(dice.uniform(-0.6, 0.6) + (0 if dice.chance(0.5) else math.pi / 2))
        u, v = _turned(grid.u, grid.v, turn)
        base = pair[_pattern(appearance, u, v, 2 / extent, extent * dice.uniform(0.85, 1.15))]
    return base * shade[..., None] + 105 * grid.gloss[..., None]


def _shade_of(dice: Dice, name: str) -> Floats:
    return np.array([dice.uniform(low, high) for low, high in zip(*COLORS[name], strict=True)], np.float32)


def _pattern(kind: str, u: Floats, v: Floats, pixel: float, extent: float) -> npt.NDArray[np.uint8]:
    """(N, N) uint8, 0 or 1: which of the two colours; bands and dots never under two pixels wide."""
    if kind == "striped":
        band = pixel * max(extent / 7, 2.2)
        return np.floor(u / band).astype(np.int32).astype(np.uint8) & 1
    if kind == "checkered":
        cell = pixel * max(extent / 5.5, 2.6)
        cells = np.floor(u / cell) + np.floor(v / cell)
        return cells.astype(np.int32).astype(np.uint8) & 1
    spacing = pixel * max(extent / 4.5, 4.6)
    u, v = u / spacing, v / spacing
    u, v = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    return (u * u + v * v <= 0.09).astype(np.uint8)
