"""The result of segmenting one image."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError, OutputError


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One label a pixel, at the photo's own size.

    Attributes:
        labels: (H, W) uint8, or uint16 for more than 255 classes; an index into `classes`.
            255 (uint8) or 65535 (uint16) means "no class".
        classes: the class names, K of them.
        timings: milliseconds a stage.
        scores: (H, W) float32 confidence of the label, or None when not asked for.

    Raises:
        InputError: shapes, dtypes or label values that do not fit together.

    Example:
        >>> result = Segmentation(np.zeros((2, 2), np.uint8), ("wall", "floor"))
        >>> result.areas()
        {'wall': 1.0, 'floor': 0.0}
    """

    labels: npt.NDArray[Any]
    classes: tuple[str, ...]
    timings: dict[str, float] = field(default_factory=dict)
    scores: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        labels, scores = self.labels, self.scores
        object.__setattr__(self, "classes", tuple(self.classes))
        if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16):
            raise InputError(f"labels must be (H, W) uint8 or uint16, got {_describe(labels)}")
        if not self.classes:
            raise InputError("classes must hold at least one name, got none")
        if len(self.classes) > self.no_class:
            raise InputError(f"{len(self.classes)} classes do not fit {labels.dtype} labels (at most {self.no_class})")
        top = int(labels.max(initial=0))
        if top == self.no_class:
            top = int(labels.max(initial=0, where=labels != self.no_class))
        if top >= len(self.classes):
            raise InputError(
                f"labels go up to {top}, but there are {len(self.classes)} classes; "
                f"expected 0 to {len(self.classes) - 1}, or {self.no_class} for no class"
            )
        if scores is not None and (
            not isinstance(scores, np.ndarray) or scores.shape != labels.shape or scores.dtype != np.float32
        ):
            raise InputError(f"scores must be {labels.shape} float32 like the labels, got {_describe(scores)}")

    @property
    def no_class(self) -> int:
        """The label of a pixel that has no class: 255 or 65535."""
        return int(np.iinfo(self.labels.dtype).max)

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """(H, W) bool, True where the label is `name`.

        Raises:
            InputError: `name` is not one of `classes`.
        """
        if name not in self.classes:
            near = difflib.get_close_matches(str(name), self.classes, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see result.classes"
            raise InputError(f"no class {name!r} among the {len(self.classes)} of this result; {hint}")
        matches: npt.NDArray[np.bool_] = self.labels == self.classes.index(name)
        return matches

    def areas(self) -> dict[str, float]:
        """Share of the pixels (0 to 1) of every class, largest first; 0.0 for a class that is not seen."""
        from runtime.visualize import count_labels

        shares = count_labels(self.labels, len(self.classes)) / max(1, self.labels.size)
        order = np.argsort(-shares, kind="stable")
        return {self.classes[index]: float(shares[index]) for index in order}

    def color_map(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB: every pixel in the colour of its class, grey where there is none."""
        from runtime.visualize import color_map

        return color_map(self.labels, self.classes)

    def overlay(self, image: Any, alpha: float = 0.55, legend: bool = True) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB: the classes painted over the photo, with a legend in the corner.

        Args:
            image: the photo, (H, W, 3) uint8 RGB or a PIL image.
            alpha: opacity of the paint, 0 to 1.
            legend: draw the legend (left out where the picture is too small for it).

        Raises:
            InputError: the photo's size is not that of the labels, or it is no uint8 RGB.
        """
        from runtime.visualize import overlay

        return overlay(image, self.labels, self.classes, alpha=alpha, legend=legend)

    def save_labels(self, path: Path | str) -> None:
        """Writes the labels as an 8-bit or 16-bit greyscale PNG.

        Raises:
            OutputError: the name does not end with .png, or the file cannot be written.
        """
        from PIL import Image

        from runtime.files import atomic_file

        path = Path(path)
        if path.suffix.lower() != ".png":
            raise OutputError(f"labels are written as .png (other formats would change them), got {path}")
        try:
            with atomic_file(path) as temporary:
                Image.fromarray(self.labels).save(temporary, format="PNG")
        except OSError as error:
            raise OutputError(f"cannot write labels to {path}: {error.strerror or error}") from error


@dataclass(frozen=True, eq=False)
class DeviceSegmentation:
    """Labels that stayed in GPU memory, ready to be read.

    Attributes:
        labels: (H, W) uint8, or uint16 for more than 255 classes, with `__cuda_array_interface__` and DLPack.
        classes, timings: as of `Segmentation`.
    """

    labels: Any
    classes: tuple[str, ...]
    timings: dict[str, float]

    def to_host(self) -> Segmentation:
        return Segmentation(self.labels.to_host(), self.classes, self.timings)


def _describe(value: object) -> str:
    return f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
