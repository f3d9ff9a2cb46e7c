"""Tabletop: pictures of coloured objects on a table, with the class of every pixel known exactly.

python benchmarks/scenes.py --count 12
python benchmarks/scenes.py --count 200 --split test --out out/test
"""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
import typer
from rich.progress import track

from benchmarks.scene_dice import Dice, direction
from benchmarks.scene_shapes import Lamp, Sprite, draw_sprite
from benchmarks.scene_surfaces import View, draw_surfaces, draw_view
from benchmarks.scene_vocabulary import SEEN, TABLE, UNSEEN, VOCABULARY
from runtime.cli import console, one_line_errors
from runtime.errors import InputError, OutputError
from runtime.visualize import palette

Pixels = npt.NDArray[np.uint8]

SPLITS = ("train", "val", "test", "hard")  # the place in this list is part of the seed: add at the end only
SMALLEST, SMALLEST_HARD = 12, 8  # pixels
_LEAST_SHARE, _LEAST_PIXELS = 0.25, 12  # of an object that may be seen for it to stay
_UNSEEN_SHARE = 0.25

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class PlacedObject:
    """One object of a scene."""

    name: str  # "red cube"
    label: int  # its index in VOCABULARY
    box: tuple[int, int, int, int]  # left, top, right, bottom (right and bottom excluded) of its visible pixels
    extent_px: int  # longer side of the whole object, hidden pixels included
    visible_share: float  # of its pixels, 0.25 to 1


@dataclass(frozen=True)
class Scene:
    image: Pixels  # (H, W, 3) uint8 RGB
    labels: Pixels  # (H, W) uint8, index into VOCABULARY
    objects: list[PlacedObject]  # back to front


@dataclass
class _Candidate:
    name: str
    sprite: Sprite
    extent: int
    bottom: int  # sprite row below the object
    base: tuple[float, float] = (0.0, 0.0)  # where it stands, in the view's level frame
    left: int = 0  # pixel position of the sprite
    top: int = 0


def make_scene(seed: int, size: int = 320, split: str = "train", frame: int = 0) -> Scene:
    """Draws scene number `seed` of a split: the same bytes on every machine, another scene at another size.

    Later frames of a scene differ by the noise of the camera, which stands still, and by the object in front, which
    goes to and fro across the table.

    Splits never share a scene. "train" has only SEEN pairs; in the others one object in four is UNSEEN.
    "hard" adds objects of 8 to 12 pixels, elsewhere the smallest have 12; the largest take a third of the image.

    Raises:
        InputError: an unknown split, a negative seed or a size under 96.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if seed < 0 or size < 96:
        raise InputError(f"seed must be 0 or more and size 96 or more, got seed {seed} and size {size}")
    dice = Dice(SPLITS.index(split), seed, size)
    view = draw_view(dice, size)
    image, labels = draw_surfaces(dice, view)
    angle, height = dice.uniform(0.15, 0.85) * math.pi, dice.uniform(0.45, 0.8)
    x, y = direction(angle)
    flat = math.sqrt(1 - height * height)
    lamp = Lamp(x * flat, -y * flat, height)
    placed = _place(dice, view, lamp, split)
    if frame and placed:
        _move(placed[-1], view, frame)
    _cast_shadows(dice, image, labels == TABLE, view, lamp, placed)
    owners = np.zeros((size, size), np.uint8)  # 0 or 1 + index of the object in front
    for index, item in enumerate(placed):
        item.sprite.paste(image, item.left, item.top)
        _window(owners, item)[item.sprite.mask] = 1 + index
    objects = []
    for index, item in enumerate(placed):
        label = VOCABULARY.index(item.name)
        visible = _window(owners, item) == 1 + index
        if not visible.any():  # the moving object is in front of it
            continue
        _window(labels, item)[visible] = label
        rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
        box = (item.left + columns[0], item.top + rows[0], item.left + columns[-1] + 1, item.top + rows[-1] + 1)
        share = int(visible.sum()) / int(item.sprite.mask.sum())
        objects.append(PlacedObject(item.name, label, tuple(map(int, box)), item.extent, share))  # type: ignore[arg-type]
    noise = Dice(SPLITS.index(split), seed, size, frame) if frame else None
    return Scene(_photograph(dice, image, noise), labels, objects)


# --- objects


def _place(dice: Dice, view: View, lamp: Lamp, split: str) -> list[_Candidate]:
    """3 to 9 objects on the table, back to front, each visible enough."""
    placed: list[_Candidate] = []
    wanted = dice.integer(3, 9)
    for _ in range(4 * wanted):
        if len(placed) == wanted:
            break
        name = dice.pick(UNSEEN if split != "train" and dice.chance(_UNSEEN_SHARE) else SEEN)
        smallest = SMALLEST_HARD if split == "hard" else SMALLEST
        largest = view.size // 3
        few = (smallest, 1.5 * smallest) if dice.chance(0.4 if split == "hard" else 0.15) else (smallest, largest)
        sprite = draw_sprite(dice, name, dice.log_uniform(*few), view.roll, view.squash, lamp)
        rows, columns = np.flatnonzero(sprite.mask.any(1)), np.flatnonzero(sprite.mask.any(0))
        if not rows.size:
            continue
        extent = int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 1
        if not smallest <= extent <= largest:
            continue
        item = _Candidate(name, sprite, extent, int(rows[-1]) + 1)
        overlap = dice.chance(0.2)
        for _ in range(6):
            beside = dice.pick(placed) if overlap and placed else None
            if _stand(dice, view, item, beside) and _fits(item, placed, overlap):
                placed.append(item)
                placed.sort(key=lambda other: other.base[1])
                break
    return placed


def _stand(dice: Dice, view: View, item: _Candidate, beside: _Candidate | None) -> bool:
    """Puts the object somewhere on the table or close to another; False if that is off the table or the picture."""
    low, high = max(view.back + 0.03, -0.4), min(view.front - 0.02, 0.48)
    if beside:
        reach = 0.5 * (item.extent + beside.extent) / view.size
        x, y = beside.base[0] + dice.uniform(-reach, reach), beside.base[1] + dice.uniform(-0.4, 0.4) * reach
    else:
        left, right = view.span(y := dice.uniform(low, high))
        x = dice.uniform(max(left, -0.48), min(right, 0.48))
    left, right = view.span(y)
    column, row = view.to_pixels(x, y)
    side = len(item.sprite.mask)
    item.base, item.left, item.top = (x, y), round(column) - side // 2, round(row) - item.bottom
    on_table = low <= y <= high and left + 0.03 <= x <= right - 0.03
    return on_table and min(item.left, item.top) >= 0 and max(item.left, item.top) + side <= view.size


def _move(item: _Candidate, view: View, frame: int) -> None:
    """A hundredth of the picture a frame; at an edge of the table or the picture it turns back."""
    x, y = item.base
    half = 0.5 * len(item.sprite.mask) / view.size
    left, right = view.span(y)
    low, high = max(left + 0.03, half - 0.5), min(right - 0.03, 0.5 - half)
    room = max(high - low, 0.01)
    way = (x - low + frame / 100) % (2 * room)
    item.base = (low + (way if way < room else 2 * room - way), y)
    column, row = view.to_pixels(*item.base)
    side = len(item.sprite.mask)
    item.left = min(max(0, round(column) - side // 2), view.size - side)
    item.top = min(max(0, round(row) - item.bottom), view.size - side)


def _fits(item: _Candidate, placed: list[_Candidate], overlap: bool) -> bool:
    """Whether all objects stay visible enough with `item` among them, and apart unless `overlap`."""
    if all(_apart(item, other) for other in placed):
        return True
    if not overlap:
        return False
    together = sorted([*placed, item], key=lambda other: other.base[1])
    right, bottom = (max(getattr(o, edge) + len(o.sprite.mask) for o in together) for edge in ("left", "top"))
    owners = np.zeros((bottom, right), np.uint8)
    for index, other in enumerate(together):
        _window(owners, other)[other.sprite.mask] = 1 + index
    seen = np.bincount(owners.ravel(), minlength=len(together) + 1)[1:]
    return all(
        count >= max(_LEAST_PIXELS, _LEAST_SHARE * other.sprite.mask.sum())
        for count, other in zip(seen, together, strict=True)
    )


def _apart(a: _Candidate, b: _Candidate) -> bool:
    """Whether the squares of two sprites do not meet."""
    side_a, side_b = len(a.sprite.mask), len(b.sprite.mask)
    across = a.left + side_a <= b.left or b.left + side_b <= a.left
    return across or a.top + side_a <= b.top or b.top + side_b <= a.top


def _window(target: Pixels, item: _Candidate) -> Pixels:
    side = len(item.sprite.mask)
    return target[item.top : item.top + side, item.left : item.left + side]


# --- light and camera


def _cast_shadows(
    dice: Dice, image: Pixels, table: npt.NDArray[np.bool_], view: View, lamp: Lamp, placed: list[_Candidate]
) -> None:
    """Darkens the table under the objects and away from the lamp, and the corner between table and wall."""
    size = view.size
    x, y = view.level_frame()
    maps = []
    for step, stretch, away, kernel, blur in ((4, 1.15, 0.8, 7, 1.5), (2, 0.75, 0.12, 9, 1.75)):  # cast, contact
        across, down = x[step // 2 :: step, step // 2 :: step], y[step // 2 :: step, step // 2 :: step]
        dark = np.zeros(across.shape, bool)
        for item in placed:
            reach = 0.5 * item.extent / size
            centre = item.base[0] - away * reach * lamp.x, item.base[1] - 0.35 * reach * view.squash
            radius = stretch * reach
            left, top = (math.floor((c - radius * size) / step) for c in view.to_pixels(*centre))
            width = math.ceil(2 * radius * size / step) + 2
            near = slice(max(0, top), max(0, top + width)), slice(max(0, left), max(0, left + width))
            dx, dy = across[near] - centre[0], (down[near] - centre[1]) / view.squash
            dark[near] |= dx * dx + dy * dy <= radius * radius
        shadow = dark.astype(np.uint8) * 255
        if step == 2:  # little light reaches the corner between table and wall
            shadow[np.abs(down - view.back) < 0.011] = 160
        shadow = cv2.GaussianBlur(shadow, (kernel, kernel), blur)
        maps.append(cv2.resize(shadow, (size, size), interpolation=cv2.INTER_LINEAR_EXACT))
    soft, contact = maps
    soft_depth, contact_depth = dice.integer(45, 100), dice.integer(60, 110)  # of 256
    light = 256 - (np.maximum(soft.astype(np.uint16) * soft_depth, contact.astype(np.uint16) * contact_depth) >> 8)
    light[~table] = 256
    image[:] = image * light[..., None] >> 8


def _photograph(dice: Dice, image: Pixels, noise: Dice | None) -> Pixels:
    """The scene's light, then the camera's blur and noise, for which later frames have dice of their own.

    No JPEG: its bytes differ between libraries. Blur weights are in sixteenths: exact, whatever the rounding.
    """
    size = len(image)
    gain, slope_x, slope_y = dice.uniform(0.62, 1.22), dice.uniform(-0.2, 0.2), dice.uniform(-0.15, 0.15)
    warm = dice.uniform(-0.05, 0.05)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    light = gain * np.clip(1 + slope_x * axis + (slope_y * axis)[:, None], 0.85, 1.15)
    light = np.clip(light, 0.6, 1.25)
    lit = np.empty_like(image)
    for channel, tint in enumerate((1 + warm, 1.0, 1 - warm)):
        lit[..., channel] = np.rint(np.minimum(image[..., channel] * (light * np.float32(tint)), 255))
    share = dice.integer(2, 12)
    blurred = cv2.GaussianBlur(lit, (3, 3), 0)
    mixed = cv2.addWeighted(lit, (16 - share) / 16, blurred, share / 16, 0)
    octets, quarters = dice.octets(size, size, 3), dice.integer(4, 20)
    if noise:
        octets = noise.octets(size, size, 3)
    return cv2.add(mixed, cv2.LUT(octets, _noise_table(quarters)), dtype=cv2.CV_8U)


@cache
def _noise_table(quarters: int) -> npt.NDArray[np.int8]:
    """(256,) int8: a uniform byte -> normal noise with a deviation of `quarters` / 4."""
    return np.array([round(NormalDist().inv_cdf((i + 0.5) / 256) * quarters / 4) for i in range(256)], np.int8)


# --- files


@app.command()
def main(
    count: Annotated[int, typer.Option(help="How many scenes.", min=1)] = 12,
    out: Annotated[Path, typer.Option(help="A new or empty folder.")] = Path("out/scenes"),
    split: Annotated[str, typer.Option(help="train, val, test or hard.")] = "train",
    size: Annotated[int, typer.Option(help="Width and height in pixels.", min=96)] = 320,
    first: Annotated[int, typer.Option(help="Seed of the first scene.", min=0)] = 0,
) -> None:
    """Writes images/ and labels/ (PNG: line number in classes.txt, from 0), classes.txt and sheet.png."""
    with one_line_errors():
        write_scenes(out, count, split, size, first)
    console.print(f"wrote {out}: {count} scenes of {split}, see {out / 'sheet.png'}", soft_wrap=True)


def write_scenes(out: Path, count: int, split: str = "train", size: int = 320, first: int = 0) -> None:
    """Writes scenes first ... first + count - 1 as a folder that accuracy.py reads; whole or not at all.

    Raises:
        InputError: an unknown split.
        OutputError: `out` holds something already or cannot be written.
    """
    make_scene(first, size, split)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out} is not an empty folder: name another with --out, or remove it first")
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            folder.chmod(0o755)
            _fill(folder, count, split, size, first)
            folder.rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error


def _fill(folder: Path, count: int, split: str, size: int, first: int) -> None:
    for name in ("images", "labels"):
        (folder / name).mkdir()
    (folder / "classes.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    shown: list[Pixels] = []
    for seed in track(range(first, first + count), description="scenes", console=console, transient=True):
        scene = make_scene(seed, size, split)
        _write_png(folder / "images" / f"{split}_{seed:06d}.png", scene.image[..., ::-1])
        _write_png(folder / "labels" / f"{split}_{seed:06d}.png", scene.labels)
        if len(shown) < 24:
            shown.append(np.hstack([scene.image, _named(scene)]))
    blank = np.zeros_like(shown[0])
    shown += [blank] * (-len(shown) % 2)
    rows = [np.hstack(shown[i : i + 2]) for i in range(0, len(shown), 2)]
    _write_png(folder / "sheet.png", np.vstack(rows)[..., ::-1])


def _named(scene: Scene) -> Pixels:
    """(H, W, 3) uint8 RGB: a colour a class, and the names of the objects."""
    picture = palette(VOCABULARY)[scene.labels]
    for item in scene.objects:
        at = (max(2, min(item.box[0], len(picture) - 6 * len(item.name))), max(9, item.box[1] - 2))
        for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(picture, item.name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.33, color, width, cv2.LINE_AA)
    return picture


def _write_png(path: Path, pixels: Pixels) -> None:
    done, data = cv2.imencode(".png", np.ascontiguousarray(pixels))
    if not done:
        raise OutputError(f"cannot encode {path.name} as PNG")
    path.write_bytes(data.tobytes())


if __name__ == "__main__":
    app()
