"""Results appear whole or not at all."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from pydantic import BaseModel

from benchmarks.result_files import save_results
from runtime.errors import OutputError


class Record(BaseModel):
    number: int = 3


def draw(path: Path) -> None:
    path.write_bytes(b"picture")


def test_all_of_them(tmp_path: Path) -> None:
    paths = save_results(Record(), tmp_path / "machine", "run", {".png": draw, "-timeline.png": draw})
    assert [path.name for path in paths] == ["run.json", "run.png", "run-timeline.png"]
    assert Record.model_validate_json(paths[0].read_text()) == Record()
    assert sorted((tmp_path / "machine").iterdir()) == sorted(paths)


def test_a_picture_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no ink")

    with pytest.raises(RuntimeError, match="no ink"):
        save_results(Record(), tmp_path, "run", {".png": draw, "-sheet.png": fail})
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [path.name for path in save_results(Record(), tmp_path, "run", {".png": draw})] == ["run.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "machine").write_bytes(b"")
    with pytest.raises(OutputError, match=r"cannot write results to .*machine \(File exists\); name another folder"):
        save_results(Record(), tmp_path / "machine", "run", {})
