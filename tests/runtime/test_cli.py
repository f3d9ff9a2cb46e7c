"""`python -m runtime segment`: photos, folders and videos; every mistake is one line and an exit code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from small_models import random_photo
from typer.testing import CliRunner, Result

from runtime.__main__ import app, timing_table
from runtime.pipeline import Pipeline

ROOT = Path(__file__).parents[2]
Segment = Callable[..., Result]


@pytest.fixture
def segment(small_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Segment:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("runtime.segmenter.DEFAULT_CACHE", None)
    monkeypatch.setattr("warnings.showwarning", None)  # the command sets its own; put back at the end

    def run(source: object, out: object, *options: str, classes: str = "wall, floor, red mug") -> Result:
        arguments = ["segment", str(source), "--classes", classes, "--out", str(out), "--threads", "1", *options]
        if "--bundle" not in options:
            arguments += ["--bundle", str(small_bundle)]
        return CliRunner().invoke(app, arguments)

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(random_photo(60, 80)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_photo(segment: Segment, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.png"
    result = segment(photo, out)
    assert result.exit_code == 0, result.stderr
    picture = np.asarray(Image.open(out))
    assert picture.shape == (60, 80, 3)
    assert not np.array_equal(picture, random_photo(60, 80))
    assert f"wrote {out}" in result.stderr
    assert "warning: " in result.stderr
    assert "random weights" in result.stderr
    assert "refinement" in result.stderr


def test_photo_without_legend(segment: Segment, tmp_path: Path) -> None:
    """The legend changes pixels of a large picture; without it all pixels are photo and paint."""
    Image.fromarray(random_photo(300, 400)).save(tmp_path / "large.png")
    for name, option in (("with.png", "--legend"), ("without.png", "--no-legend")):
        assert segment(tmp_path / "large.png", tmp_path / name, option).exit_code == 0
    pictures = [np.asarray(Image.open(tmp_path / name)) for name in ("with.png", "without.png")]
    assert not np.array_equal(*pictures)


def test_folder(segment: Segment, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(3):
        Image.fromarray(random_photo(40, 40 + i)).save(photos / f"{i}.png")
    result = segment(photos, out)
    assert result.exit_code == 0, result.stderr
    assert {path.name: Image.open(path).size for path in out.iterdir()} == {f"{i}.png": (40 + i, 40) for i in range(3)}
    assert "mean of 2 frames" in result.stderr


def test_video(segment: Segment, tmp_path: Path) -> None:
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for i in range(4):
        writer.write(np.full((48, 64, 3), 50 * i, np.uint8))
    writer.release()
    result = segment(source, out)
    assert result.exit_code == 0, result.stderr
    capture = cv2.VideoCapture(str(out))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert capture.read()[1].shape == (48, 64, 3)


def test_video_that_reuses_features(segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of equal photos: every picture is written under its own name, and the backbone is called once."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(3):
        Image.fromarray(random_photo(40, 40)).save(photos / f"{i}.png")
    stages: list[str] = []
    real = Pipeline._run

    def recording(self: Pipeline, stage: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        stages.append(stage)
        return real(self, stage, **inputs)

    monkeypatch.setattr(Pipeline, "_run", recording)
    result = segment(photos, out, "--reuse-global", "4", "--crops", "changed", "--shortlist", "2")
    assert result.exit_code == 0, result.stderr
    first, *others = [np.asarray(Image.open(out / f"{i}.png")) for i in range(3)]
    assert all(np.array_equal(first, other) for other in others)
    assert [stages.count(stage) for stage in ("backbone", "correlation")] == [2, 3]


def test_backend_and_precision(segment: Segment, photo: Path, tmp_path: Path) -> None:
    result = segment(photo, tmp_path / "out.png", "--backend", "openvino", "--precision", "fp32")
    assert result.exit_code == 0, result.stderr


def one_error_line(result: Result, code: int, words: str) -> None:
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert result.exit_code == code
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("nowhere.png", None, 2, "nowhere.png does not exist"),
        ("broken.png", b"\x89PNG broken", 2, "broken.png cannot be read"),
        ("broken.mp4", b"no video", 2, "broken.mp4 cannot be opened"),
        ("[/red].png", None, 2, "[/red].png does not exist"),
    ],
)
def test_bad_source(name: str, content: bytes | None, code: int, words: str, segment: Segment, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    out = tmp_path / f"out{Path(name).suffix}"
    one_error_line(segment(tmp_path / name, out), code, words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--bundle", "nowhere"), 1, "nowhere is not a bundle: it has no manifest.json; build one with"),
        (("--backend", "tflite"), 2, "backend is 'tflite'; expected auto or one of onnxruntime, onnxruntime-cuda"),
        (("--precision", "int8"), 2, "precision is 'int8'; expected one of fp32, fp16, bf16"),
        (("--precision", "bf16", "--backend", "onnxruntime"), 2, "use backend openvino for bf16"),
        (("--threads", "0"), 2, "--threads is 0; expected at least 1"),
        (("--shortlist", "-1"), 2, "shortlist is -1; expected 0 (off)"),
        (("--reuse-global", "0"), 2, "reuse_global is 0; expected 1"),
        (("--crops", "few"), 2, "crops is 'few'; expected 'all' or 'changed'"),
    ],
)
def test_bad_options(
    options: tuple[str, ...], code: int, words: str, segment: Segment, photo: Path, tmp_path: Path
) -> None:
    one_error_line(segment(photo, tmp_path / "out.png", *options), code, words)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("", "no class names given"),
        (" , ", "no class names given"),
        ("missing.txt", "class list missing.txt does not exist"),
        ("wall, <|endoftext|>", "holds the special token"),
    ],
)
def test_bad_classes(classes: str, words: str, segment: Segment, photo: Path, tmp_path: Path) -> None:
    one_error_line(segment(photo, tmp_path / "out.png", classes=classes), 2, words)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("photo.png/out.png", "cannot write to folder"),
        ("out.mp4", "is written as .png"),
        ("photo.png", "is the source"),
    ],
)
def test_unwritable_out(out: str, words: str, segment: Segment, photo: Path, tmp_path: Path) -> None:
    before = photo.read_bytes()
    one_error_line(segment(photo, tmp_path / out), 1, words)
    assert photo.read_bytes() == before


def test_ctrl_c(segment: Segment, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.segmenter.Segmenter._segment", interrupt)
    result = segment(photo, tmp_path / "out.png")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("interrupted")
    assert not (tmp_path / "out.png").exists()


def test_a_real_process(tmp_path: Path) -> None:
    """The module's own entry, its exit code, and nothing on stdout."""
    command = [sys.executable, "-m", "runtime", "segment", "nowhere.png", "--classes", "a", "--bundle", "b", "-o", "c"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: nowhere.png does not exist")
    assert result.stderr.count("\n") == 1


def test_help_needs_neither_kernels_nor_engines() -> None:
    code = """
import sys
from typer.testing import CliRunner
from runtime.__main__ import app
for arguments in (["--help"], ["segment", "--help"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
print([name for name in ("numpy", "kernels", "onnxruntime", "torch", "cv2", "PIL") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_timing_table_leaves_out_the_first_of_several_frames() -> None:
    def mean(*times: float) -> str:
        return next(iter(list(timing_table([{"total": time} for time in times]).columns[1].cells)))

    assert mean(100, 1, 3) == "2.0"
    assert mean(100) == "100.0"
