"""What a benchmark leaves behind: a .json and the pictures beside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from pydantic import BaseModel

from runtime.cli import console
from runtime.errors import OutputError
from runtime.files import atomic_file


def save_results(
    record: BaseModel, folder: Path, stem: str, pictures: Mapping[str, Callable[[Path], None]]
) -> list[Path]:
    """All of them whole, or none; without matplotlib the .json alone, which is said.

    Args:
        pictures: What draws the picture `stem` + key at a path. It may import matplotlib.

    Raises:
        OutputError: the folder cannot be written.
    """
    drawn = pictures if importlib.util.find_spec("matplotlib") is not None else {}
    paths = [folder / f"{stem}{ending}" for ending in (".json", *drawn)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            data, *images = [stack.enter_context(atomic_file(path)) for path in paths]
            data.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
            for draw, image in zip(drawn.values(), images, strict=True):
                draw(image)
    except OSError as error:
        raise OutputError(f"cannot write results to {folder} ({error.strerror}); name another folder") from None
    if len(drawn) < len(pictures):
        console.print("no picture: matplotlib is not installed (pip install matplotlib)")
    return paths
