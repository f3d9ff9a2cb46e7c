"""Class lists: from a list, a .txt or .json file, or a comma-separated string."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.errors import InputError

# Labels are at most uint16, and 65535 is "no class".
MAX_CLASSES = 65_534

_SPECIAL = re.compile(r"<\|.*?\|>")
_ACCEPTED = 'a list of names, a .txt file (one name a line), a .json file, or "wall, floor, red mug"'


def read_classes(source: Sequence[str] | str | Path) -> list[str]:
    """Reads and checks a class list; label i of a result is the i-th name of the returned list.

    Args:
        source: a list or tuple; a path to .txt (one name a line) or .json (a list, `{"classes": [...]}`,
            or `{"0": "wall", "1": "floor"}`); or names separated by commas. A string is taken for a file
            when it ends with .txt or .json or when such a file exists. Commas inside a list's or file's
            entries are kept: they separate synonyms of one class.

    Raises:
        InputError: the file is missing or unreadable, or the names cannot be used (see `check_classes`).

    Example:
        >>> read_classes("wall, floor, red mug")
        ['wall', 'floor', 'red mug']
    """
    if isinstance(source, Path) or (isinstance(source, str) and _is_file(source)):
        return check_classes(_read_file(Path(source).expanduser()))
    if isinstance(source, str):
        return check_classes(source.split(","))
    if isinstance(source, (list, tuple)):
        return check_classes(source)
    raise InputError(f"classes must be {_ACCEPTED}, got {type(source).__name__}")


def check_classes(names: Sequence[Any]) -> list[str]:
    """Strips the names; drops blank and duplicate ones with a UserWarning that names them.

    Raises:
        InputError: an entry is no string or holds a special token, or there are no classes or too many.
    """
    kept: dict[str, int] = {}
    blank: list[int] = []
    duplicates: list[str] = []
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise InputError(f"class {index} must be a string, got {type(name).__name__} ({_short(name)})")
        name = name.strip()
        if special := _SPECIAL.search(name):
            raise InputError(f"class {index} ({_short(name)}) holds the special token {special[0]}; remove it")
        if not name:
            blank.append(index)
        elif name in kept:
            duplicates.append(name)
        else:
            kept[name] = index
    if not kept:
        raise InputError(f"no class names given; expected {_ACCEPTED}")
    if len(kept) > MAX_CLASSES:
        raise InputError(f"{len(kept)} classes given, at most {MAX_CLASSES} are possible; use fewer")
    if blank:
        warnings.warn(f"dropped blank class names at positions {_listed(blank)}", UserWarning, stacklevel=2)
    if duplicates:
        warnings.warn(f"dropped duplicate class names: {_listed(duplicates)}", UserWarning, stacklevel=2)
    return list(kept)


def _is_file(text: str) -> bool:
    if text.strip().lower().endswith((".txt", ".json")):
        return True
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a path, a NUL byte, "~nobody"
        return False


def _read_file(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"class list {path} does not exist; expected {_ACCEPTED}") from None
    except UnicodeDecodeError:
        raise InputError(f"class list {path} is no UTF-8 text; expected a .txt or .json file") from None
    except OSError as error:
        raise InputError(f"cannot read class list {path}: {error.strerror}") from error
    if path.suffix.lower() != ".json":
        return text.splitlines()
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"class list {path} is not valid JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("classes"), list):
        content = content["classes"]
    if isinstance(content, dict) and content:
        return _from_id_map(content, path)
    if isinstance(content, list):
        return content
    raise InputError(f'class list {path} must hold a list of names, {{"classes": [...]}}, or {{"0": "wall", ...}}')


def _from_id_map(id_map: dict[str, Any], path: Path) -> list[Any]:
    """Ids must be 0..K-1: a gap would shift every later label away from the id that the file gives it."""
    ids = {int(key): name for key, name in id_map.items() if key.isdecimal()}
    if len(ids) != len(id_map) or sorted(ids) != list(range(len(ids))):
        raise InputError(
            f"class list {path} is a map whose keys must be the ids 0 to {len(id_map) - 1}, "
            f"got {_listed(list(id_map))}; number them so, or write a list"
        )
    return [ids[index] for index in range(len(ids))]


def _listed(items: Sequence[object], most: int = 8) -> str:
    listed = ", ".join(_short(item) for item in items[:most])
    return listed if len(items) <= most else f"{listed} and {len(items) - most} more"


def _short(item: object) -> str:
    text = repr(item)
    return text if len(text) <= 60 else text[:57] + "..."
