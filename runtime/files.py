"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def cache_dir(kind: str) -> Path | None:
    """`$XDG_CACHE_HOME/dinov3seg/<kind>`, else under `~/.cache`; None for a user without a home."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The XDG specification says that a relative path is to be ignored.
        root = configured if configured.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "dinov3seg" / kind


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` at the end, or vanishes if the block raises.

    Readers see the old file or the whole new one, and two writers cannot mix their bytes.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105 (Path.replace hides that this is the atomic step)
    finally:
        temporary.unlink(missing_ok=True)
