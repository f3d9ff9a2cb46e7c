"""Video: which views of a frame must go through the backbone again, and which keep the features of an earlier frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.geometry import Geometry
from runtime.images import Pixels

CROPS: Final = ("all", "changed")
SAMPLES: Final = 4  # a side of each patch: 16 of its 256 pixels are compared
# Grey levels, the mean over the samples of one patch. Noise of standard deviation s moves it by 1.13 s from frame to
# frame, so that up to s = 5 it stays below. An edge between two areas that differ by more than 32 levels counts when
# it has moved over one column of samples, a quarter of a patch at the latest.
THRESHOLD: Final = 8.0


@dataclass(frozen=True, eq=False)
class Refresh:
    """What one frame computes anew; all other features are those of earlier frames.

    Attributes:
        full: Whether the whole image does.
        crops: Which crops do, in their order: row by row, ascending.
    """

    full: bool
    crops: tuple[int, ...]


class Reuse:
    """The memory of one stream: what each view looked like when its features were computed.

    Looks at the photo alone, at one point in four along both axes of the model's input. A crop has changed when in
    one of its patches the mean absolute difference to the photo that the crop was last computed from exceeds
    THRESHOLD: the mean over a whole crop would miss small objects. Comparing with that photo, not with the previous
    one, slow changes add up until they count. What changes between the points, or by less, is not noticed.

    Args:
        geometry: Of the model.
        reuse_global: The whole image is computed in every n-th frame; 1: in all.
        crops: "changed", or "all" to compute every crop of every frame.

    Raises:
        InputError: other values.
    """

    def __init__(self, geometry: Geometry, *, reuse_global: int = 1, crops: str = "all") -> None:
        if reuse_global < 1:
            raise InputError(f"reuse_global is {reuse_global}; expected 1 (the whole image in every frame) or more")
        if crops not in CROPS:
            raise InputError(f"crops is {crops!r}; expected {' or '.join(map(repr, CROPS))}")
        self._geometry, self._period, self._changed_only = geometry, reuse_global, crops == "changed"
        self.last: Refresh | None = None
        self._kind: tuple[tuple[int, ...], str] | None = None  # shape and colour of the photos
        self._frame = 0
        self._seen: list[Pixels] = []  # the samples of each crop when it was last computed

    def refresh(self, photo: Pixels, color: str, kept: Refresh | None) -> Refresh:
        """Decides for the next frame.

        Args:
            photo: (H, W, 3) uint8 of any strides.
            color: "rgb" or "bgr".
            kept: What this returned for the frame whose features the caller still holds; None if it holds none.

        Returns:
            Everything, if it is the first frame, the photo has another size or colour than the last, or the caller
            does not hold the features of the last frame: another stream used its buffers, or the frame failed.
        """
        windows = list(self._windows(samples(photo, self._geometry)))
        kind = photo.shape, color
        if kept is None or kept is not self.last or kind != self._kind:
            self._kind, self._frame, self._seen = kind, 0, windows
            crops = list(range(len(windows)))
        else:
            self._frame += 1
            crops = [
                index
                for index, (now, then) in enumerate(zip(windows, self._seen, strict=True))
                if not self._changed_only or differs(now, then)
            ]
            for index in crops:
                self._seen[index] = windows[index]
        self.last = Refresh(self._frame % self._period == 0, tuple(crops))
        return self.last

    def _windows(self, sampled: Pixels) -> list[Pixels]:
        """The samples of each crop."""
        geometry = self._geometry
        side, stride = SAMPLES * geometry.crop_grid, SAMPLES * geometry.token_stride
        starts = [stride * index for index in range(geometry.crops_per_side)]
        return [sampled[y : y + side, x : x + side] for y in starts for x in starts]


def samples(photo: Pixels, geometry: Geometry) -> Pixels:
    """(H, W, 3) -> (4G, 4G, 3): the pixels of the photo nearest to points that lie evenly in every patch."""
    side = SAMPLES * geometry.grid
    rows, columns = ((2 * np.arange(side) + 1) * length // (2 * side) for length in photo.shape[:2])
    found: Pixels = photo[rows[:, None], columns]
    return found


def differs(now: Pixels, then: Pixels) -> bool:
    """Whether the mean absolute difference exceeds THRESHOLD in any patch of two (4g, 4g, 3) windows."""
    difference: npt.NDArray[np.int16] = np.abs(now.astype(np.int16) - then)
    patches = len(now) // SAMPLES
    sums = difference.reshape(patches, SAMPLES, patches, SAMPLES * 3).sum(axis=(1, 3), dtype=np.int32)
    return bool(sums.max() > THRESHOLD * SAMPLES**2 * 3)
