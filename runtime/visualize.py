"""Label maps as pictures: a fixed colour a class name, overlays with borders and a legend."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from runtime.errors import InputError

Pixels = npt.NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_NO_CLASS = (104, 104, 104)
_ROWS_AT_ONCE = 256  # an 8K overlay needs little more memory than its result
_MOST_ENTRIES = 14
_SALT = "7861"  # of 20000 tried, the one that sets common indoor and street classes furthest apart
_BACKDROP = (16, 18, 22)
_BACKDROP_OPACITY = 0.72
_BRIGHT, _DIM = (245, 245, 245), (176, 180, 188)

# Tried in this order for names that Pillow's own font (Latin only) cannot draw.
_FALLBACK_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "arialuni.ttf")


@lru_cache(maxsize=1 << 17)
def class_color(name: str) -> tuple[int, int, int]:
    """The colour (r, g, b) of a class: a function of its name alone, the same in every process.

    Hue, lightness and chroma come from a hash, in OKLCH so that the steps look alike; never near grey.
    """
    key = _SALT + name.strip().casefold()
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    hue, light, vivid = (int.from_bytes(digest[i : i + 4], "big") / 2**32 for i in (0, 4, 8))
    lightness = 0.55 + 0.27 * light
    low, high = 0.0, 0.4  # bisection for the largest chroma that sRGB can show
    for _ in range(12):
        middle = (low + high) / 2
        if all(0.0 <= value <= 1.0 for value in _oklch_to_linear(lightness, middle, hue)):
            low = middle
        else:
            high = middle
    linear = _oklch_to_linear(lightness, (0.75 + 0.25 * vivid) * low, hue)
    red, green, blue = (round(255 * _gamma(min(1.0, max(0.0, value)))) for value in linear)
    return red, green, blue


def palette(names: Sequence[str]) -> Pixels:
    """(K, 3) uint8 RGB, one row a class name."""
    return np.array([class_color(name) for name in names], np.uint8).reshape(-1, 3)


def count_labels(labels: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    """(K,) pixels of each label; "no class" is not counted."""
    counts = np.zeros(classes, np.int64)
    for top in range(0, len(labels), _ROWS_AT_ONCE):  # bincount copies its input to int64
        rows = labels[top : top + _ROWS_AT_ONCE]
        counts += np.bincount(rows.ravel(), minlength=classes)[:classes]
    return counts


def color_map(labels: npt.NDArray[Any], names: Sequence[str]) -> Pixels:
    """(H, W) uint8 or uint16 labels -> (H, W, 3) uint8 RGB; grey where there is no class."""
    painted: Pixels = _lookup_table(labels, names).take(labels, axis=0)
    return painted


def overlay(
    image: Any, labels: npt.NDArray[Any], names: Sequence[str], alpha: float = 0.55, legend: bool = True
) -> Pixels:
    """(H, W, 3) uint8 RGB: classes painted over the photo with solid borders; no-class pixels stay bare.

    Args:
        image: (H, W, 3) uint8 RGB or a PIL image, of the labels' size.
        labels: (H, W) uint8 or uint16.
        names: the class names, K of them.
        alpha: opacity of the paint, 0 to 1.
        legend: draw a legend in the top left corner, where the picture is large enough.

    Raises:
        InputError: `image` or `alpha` cannot be used.
    """
    import cv2

    pixels = np.asarray(image)
    height, width = labels.shape
    if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
        raise InputError(
            f"image must be ({height}, {width}, 3) uint8 RGB like the labels, got {pixels.shape} {pixels.dtype}"
        )
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha must be between 0 and 1, got {alpha}")
    table = _lookup_table(labels, names)
    no_class = np.iinfo(labels.dtype).max
    thickness = max(1, round(min(height, width) / 360))
    kernel = np.ones((thickness + 1, thickness + 1), np.uint8)
    result = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _ROWS_AT_ONCE):
        bottom = min(top + _ROWS_AT_ONCE, height)
        above = max(0, top - thickness)
        nearby = np.ascontiguousarray(labels[above : bottom + thickness])
        border = cv2.compare(cv2.dilate(nearby, kernel), cv2.erode(nearby, kernel), cv2.CMP_NE)
        strip, photo = labels[top:bottom], np.ascontiguousarray(pixels[top:bottom])
        colors = table.take(strip, axis=0)
        painted = cv2.addWeighted(photo, 1.0 - alpha, colors, alpha, 0.0)
        cv2.copyTo(colors, border[top - above : bottom - above], painted)
        cv2.copyTo(photo, (strip == no_class).view(np.uint8), painted)
        result[top:bottom] = painted
    if legend:
        _draw_legend(result, count_labels(labels, len(names)), names)
    return result


def _lookup_table(labels: npt.NDArray[Any], names: Sequence[str]) -> Pixels:
    table = np.full((int(np.iinfo(labels.dtype).max) + 1, 3), _NO_CLASS, np.uint8)
    table[: len(names)] = palette(names)
    return table


def _draw_legend(picture: Pixels, counts: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    """Draws swatch, name and share of the seen classes, largest first, into the top left corner."""
    height, width = picture.shape[:2]
    size = max(11, round(min(height, width) / 42))
    pad, gap, row = round(0.8 * size), round(0.6 * size), round(1.55 * size)
    margin = round(0.7 * size)
    seen = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    rows = min(len(seen), _MOST_ENTRIES + 1, (7 * height // 10 - margin - 2 * pad) // row)
    shares = [_percent(counts[index] / (height * width)) for index in seen]
    share_width = max((_text_width(share, size) for share in shares[:rows]), default=0)
    room = min(13 * size, 2 * width // 5 - margin - 2 * pad - 2 * gap - size - share_width)
    if rows < min(2, len(seen)) or rows < 1 or room < 3 * size:
        return
    listed = seen if rows == len(seen) and rows <= _MOST_ENTRIES else seen[: rows - 1]
    shown = [_shorten(names[index], size, room) for index in listed]
    more = f"+ {len(seen) - len(listed)} more" if len(listed) < len(seen) else ""
    name_width = max(_text_width(text, size) for text in [*shown, more])
    panel_size = (2 * pad + size + 2 * gap + name_width + share_width, 2 * pad + rows * row)
    corner = picture[margin : margin + panel_size[1], margin : margin + panel_size[0]]
    panel = Image.blend(
        Image.fromarray(np.ascontiguousarray(corner)),
        Image.new("RGB", (corner.shape[1], corner.shape[0]), _BACKDROP),
        _BACKDROP_OPACITY,
    )
    draw = ImageDraw.Draw(panel)
    for line, (index, text) in enumerate(zip(listed, shown, strict=True)):
        middle = pad + line * row + row // 2
        box = (pad, middle - size // 2, pad + size - 1, middle - size // 2 + size - 1)
        draw.rounded_rectangle(box, radius=max(1, size // 6), fill=class_color(names[index]))
        draw.text((pad + size + gap, middle), text, fill=_BRIGHT, font=_font(text, size), anchor="lm")
        share = shares[line]
        draw.text((panel_size[0] - pad, middle), share, fill=_DIM, font=_font(share, size), anchor="rm")
    if more:
        at = (pad + size + gap, pad + len(listed) * row + row // 2)
        draw.text(at, more, fill=_DIM, font=_font(more, size), anchor="lm")
    corner[:] = np.asarray(panel)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def _shorten(text: str, size: int, room: int) -> str:
    """`text` on one line of at most `room` pixels, cut with an ellipsis."""
    text = " ".join(text.split())
    if _text_width(text, size) <= room:
        return text
    while text and _text_width(text + "…", size) > room:
        text = text[:-1]
    return text.rstrip(" ,") + "…"


def _text_width(text: str, size: int) -> int:
    return math.ceil(_font(text, size).getlength(text))


def _font(text: str, size: int) -> Font:
    """Pillow's own font, or an installed one that can draw `text`."""
    default = _load_font("", size)
    if default is None or text.isascii():
        return default or ImageFont.load_default()
    fonts = [default, *(_load_font(name, size) for name in _FALLBACK_FONTS)]
    return next((font for font in fonts if font is not None and _can_draw(font, text)), default)


@lru_cache(maxsize=64)
def _load_font(name: str, size: int) -> Font | None:
    """The font file `name`, "" for Pillow's own; None when it is not installed."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


def _can_draw(font: Font, text: str) -> bool:
    missing = bytes(font.getmask("\U0010ffff"))  # what the font draws for a character it lacks
    return all(bytes(font.getmask(letter)) != missing for letter in set(text) if not letter.isspace())


def _oklch_to_linear(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCH (hue 0 to 1) -> linear sRGB, by Björn Ottosson's matrices."""
    a, b = chroma * math.cos(2 * math.pi * hue), chroma * math.sin(2 * math.pi * hue)
    l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
        -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
        -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
    )


def _gamma(value: float) -> float:
    """Linear light (0 to 1) -> sRGB (0 to 1)."""
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
