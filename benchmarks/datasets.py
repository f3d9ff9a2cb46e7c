"""Pictures with a known class for every pixel: Tabletop scenes, or a user's folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict

from benchmarks.segmentation_metrics import IGNORE, Box
from runtime.errors import InputError
from runtime.images import Pixels
from runtime.video import read_photo

SMALL_EXTENT = 16  # pixels: an object whose longer side is under this is small
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_LAYOUT = "expected images/, labels/ with a .png of the same name for each image, and classes.txt"


@dataclass(frozen=True)
class Sample:
    """image (H, W, 3) RGB; truth (H, W) class indices, IGNORE where none; class and box of each small object."""

    name: str
    image: Pixels
    truth: npt.NDArray[np.uint16]
    small: tuple[tuple[int, Box], ...] = ()


class Identity(BaseModel):
    """What a result was measured on. `seeds` (first, last), `split` and `size` belong to Tabletop scenes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    images: int
    classes: int
    split: str | None = None
    size: int | None = None
    seeds: tuple[int, int] | None = None


class Dataset(Protocol):
    """`groups`: classes whose mIoU is also given apart, by name."""

    identity: Identity
    classes: tuple[str, ...]
    groups: dict[str, tuple[int, ...]]
    tabletop: bool

    def __iter__(self) -> Iterator[Sample]: ...


class Tabletop:
    """Scenes 0 to count - 1 of a split, with the whole vocabulary as candidates."""

    tabletop = True

    def __init__(self, split: str, count: int, size: int) -> None:
        from benchmarks.scene_vocabulary import SEEN, SURFACES, UNSEEN, VOCABULARY
        from benchmarks.scenes import make_scene

        make_scene(0, size, split)  # an unknown split or size is told before engines are loaded
        self.classes = VOCABULARY
        self.groups = {
            name: tuple(VOCABULARY.index(word) for word in words)
            for name, words in (("surfaces", SURFACES), ("seen pairs", SEEN), ("unseen pairs", UNSEEN))
        }
        self.identity = Identity(
            name="tabletop", images=count, classes=len(VOCABULARY), split=split, size=size, seeds=(0, count - 1)
        )

    def __iter__(self) -> Iterator[Sample]:
        from benchmarks.scenes import make_scene

        split, size = self.identity.split or "", self.identity.size or 0
        for seed in range(self.identity.images):
            scene = make_scene(seed, size, split)
            small = tuple((item.label, item.box) for item in scene.objects if item.extent_px < SMALL_EXTENT)
            yield Sample(f"{split} {seed}", scene.image, scene.labels.astype(np.uint16), small)


class Folder:
    """images/, labels/ (8-bit, 16-bit or palette PNG: the line in classes.txt, from 0) and classes.txt.

    255 in an 8-bit file and 65535 in a 16-bit one are ignored, and so is the number of an empty line in classes.txt.
    All labels are read once at the start, so that a damaged file is told before hours of work.

    Raises:
        InputError: something is missing, of another size, or out of range.
    """

    tabletop = False
    groups: dict[str, tuple[int, ...]] = {}  # noqa: RUF012 (nothing to give apart)

    def __init__(self, root: Path, most: int | None = None) -> None:
        lines = read_lines(root / "classes.txt")
        self.classes = tuple(line for line in lines if line)
        self._table = np.full(len(lines), IGNORE, np.uint16)
        self._table[[bool(line) for line in lines]] = np.arange(len(self.classes), dtype=np.uint16)
        self._pairs = pairs(root)[:most]
        for image, label in self._pairs:
            self._check(image, label)
        self.identity = Identity(name=root.resolve().name, images=len(self._pairs), classes=len(self.classes))

    def __iter__(self) -> Iterator[Sample]:
        for image, label in self._pairs:
            yield Sample(image.stem, read_photo(image), self._truth(label))

    def _truth(self, path: Path) -> npt.NDArray[np.uint16]:
        values, ignored = read_label(path)
        top = int(values.max(initial=0, where=values != ignored))
        if top >= len(self._table):
            raise InputError(
                f"label {path} holds {top}, but classes.txt has {len(self._table)} lines; expected 0 to "
                f"{len(self._table) - 1}, or {ignored} for pixels to ignore"
            )
        return np.where(values == ignored, IGNORE, self._table[np.where(values == ignored, 0, values)])

    def _check(self, image: Path, label: Path) -> None:
        truth = self._truth(label)
        size = picture_size(image)
        if size != truth.shape:
            raise InputError(
                f"label {label} is {truth.shape[1]}x{truth.shape[0]}, its image {size[1]}x{size[0]}; "
                "expected one label a pixel (nearest-neighbour resizing keeps labels whole)"
            )


def read_lines(path: Path) -> list[str]:
    """The lines of classes.txt, empty ones kept but at the end: the number of a line is the label.

    Raises:
        InputError: missing or unreadable, no names, the same name twice, or too many.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise InputError(f"{path} {reason}; {_LAYOUT}") from None
    lines = [line.strip() for line in text.split("\n")]
    names = [line for line in lines if line]
    if not names:
        raise InputError(f"{path} holds no names; expected one a line, the line's number from 0 being its label")
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    if twice:
        raise InputError(f"{path} names {twice[0]!r} twice; expected every class once")
    if len(lines) > IGNORE:
        raise InputError(f"{path} has {len(lines)} lines; expected at most {IGNORE}")
    return lines


def pairs(root: Path) -> list[tuple[Path, Path]]:
    """Every image with its label file, by name."""
    folder = root / "images"
    images = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES)
    if not images:
        raise InputError(f"{folder} holds no pictures; {_LAYOUT}")
    found = [(image, root / "labels" / f"{image.stem}.png") for image in images]
    missing = [(image, label) for image, label in found if not label.is_file()]
    if missing:
        image, label = missing[0]
        more = f" (and {len(missing) - 1} more like it)" if len(missing) > 1 else ""
        raise InputError(f"image {image.name} has no label {label}{more}; {_LAYOUT}")
    return found


def read_label(path: Path) -> tuple[npt.NDArray[Any], int]:
    """(H, W) numbers as in the file, and the number that means "ignore"."""
    try:
        with Image.open(path) as opened:
            if opened.mode in ("1", "L", "P"):
                return np.array(opened).astype(np.uint8), 255
            if opened.mode.startswith("I"):
                return np.array(opened).astype(np.int64), 65535
            mode = opened.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"label {path} cannot be read ({error}); is it a whole PNG file?") from None
    raise InputError(f"label {path} is a {mode} picture; expected 8-bit or 16-bit greyscale, or a palette")


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture once it is upright, from its header alone."""
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            turned = opened.getexif().get(0x0112, 1) >= 5  # EXIF orientation
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"image {path} cannot be read ({error}); is it a whole picture file?") from None
    return (width, height) if turned else (height, width)
