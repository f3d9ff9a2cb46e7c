"""The photo that is segmented, as a file of bare pixels that every process can read."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt


@contextmanager
def photo_file(path: Path | None) -> Iterator[tuple[Path, str]]:
    """A temporary .npy file and what to call the photo.

    Raises:
        InputError: the photo is missing or damaged.
    """
    pixels, name = read(path)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "photo.npy"
        np.save(target, pixels)
        yield target, name


def read(path: Path | None) -> tuple[npt.NDArray[np.uint8], str]:
    """(H, W, 3) uint8 RGB: the given photo, scikit-image's, or a generated one."""
    if path is not None:
        from runtime.video import read_photo

        return read_photo(path), path.name
    if importlib.util.find_spec("skimage") is not None:
        import skimage.data

        coffee: npt.NDArray[np.uint8] = skimage.data.coffee()
        return coffee, "skimage.data.coffee()"
    from runtime.probe import generated_photo

    return generated_photo(), "runtime.probe.generated_photo()"
