"""The words of the Tabletop scenes: surfaces, appearances and shapes, and the pairs kept out of training."""

from __future__ import annotations

from typing import Final

SURFACES: Final = ("table", "wall", "floor")
TABLE, WALL, FLOOR = range(3)
SHAPES: Final = ("cube", "ball", "cone", "ring", "star", "cross")
PATTERNS: Final = ("striped", "dotted", "checkered")

# Lowest and highest RGB of each colour, before light and shading. Both only scale the three channels alike
# (a few percent apart), so hues, 40 degrees or more from each other, keep their names in every light.
COLORS: Final = {
    "red": ((195, 16, 16), (225, 36, 36)),
    "yellow": ((225, 190, 8), (245, 212, 30)),
    "green": ((22, 140, 34), (44, 172, 56)),
    "cyan": ((12, 178, 186), (36, 205, 214)),
    "blue": ((20, 46, 185), (44, 72, 222)),
    "purple": ((124, 26, 166), (150, 52, 196)),
    "white": ((234, 234, 232), (248, 248, 246)),
    "black": ((16, 16, 17), (32, 32, 33)),
}
APPEARANCES: Final = (*COLORS, *PATTERNS)

VOCABULARY: Final = (*SURFACES, *(f"{appearance} {shape}" for shape in SHAPES for appearance in APPEARANCES))

# Two a shape and every appearance word once (green twice): each word is still learnt from four or more shapes.
UNSEEN: Final = (
    *("green cube", "dotted cube", "purple ball", "striped ball", "cyan cone", "white cone"),
    *("red ring", "checkered ring", "blue star", "black star", "yellow cross", "green cross"),
)
SEEN: Final = tuple(name for name in VOCABULARY if name not in UNSEEN and name not in SURFACES)


def luma(color: tuple[int, int, int]) -> float:
    """Brightness of an RGB colour, 0 to 255 (Rec. 601)."""
    red, green, blue = color
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _contrasting_pairs() -> tuple[tuple[str, str], ...]:
    brightness = {name: luma(low) for name, (low, _) in COLORS.items()}
    return tuple((a, b) for a in COLORS for b in COLORS if abs(brightness[a] - brightness[b]) >= 85)


# Both colours of a pattern must still differ when a band is two pixels wide and blurred.
PATTERN_PAIRS: Final = _contrasting_pairs()
