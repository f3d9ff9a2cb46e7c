"""The build command: early refusals that name the option, clean interruption, and a whole run."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from processes import heed_ctrl_c
from small_models import SMALL
from typer.testing import CliRunner, Result

from export.build_engines import Graphs, app, engine_runs
from export.build_inputs import calibration_images
from runtime.bundle import Bundle
from runtime.errors import InputError
from runtime.probe import generated_photo

ROOT = Path(__file__).parents[2]
SCRIPT = [sys.executable, "export/build_engines.py"]
OVERRIDES = [part for override in (*SMALL, "early_refinement=none") for part in ("--set", override)]
SMALLEST = ["--random-weights", "--refinement", "none", *OVERRIDES, "--set", "backbone.depth=1"]


@pytest.fixture(autouse=True)
def signal_handler() -> Iterator[None]:
    """The command installs its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def build(*options: str | Path) -> Result:
    return CliRunner().invoke(app, [str(option) for option in options])


def refused(result: Result, code: int, words: str) -> None:
    """One line, and before anything was announced: that is, before torch was imported."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert result.exit_code == code


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- refusals


def test_help_is_quick_and_needs_no_torch() -> None:
    code = """
import sys
sys.argv = ["build_engines.py", "--help"]
import runpy
try:
    runpy.run_path("export/build_engines.py", run_name="__main__")
except SystemExit as end:
    assert end.code == 0
print([name for name in ("torch", "onnx", "onnxscript", "onnxruntime", "openvino") if name in sys.modules])
"""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
    assert "--random-weights" in result.stdout
    assert seconds < (1.5 if os.getloadavg()[0] < 2 else 6)


@pytest.mark.parametrize("options", [["--preset", "vits"], ["--random-weights", "--weights", "checkpoints"]])
def test_neither_or_both_sources_of_weights(options: list[str], tmp_path: Path) -> None:
    refused(build(*options, "--out", tmp_path / "b"), 2, "give either --weights DIR with the official checkpoints, or")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "huge"], "preset 'huge' does not exist; expected one of tiny, vits, vitb, vitl"),
        (["--set", "geometry.strides=64"], "--set 'geometry.strides=64': expected FIELD=VALUE"),
        (["--set", "geometry.stride=96"], "does not tile the image"),
        (["--set", "sam.taps=[3,1]"], "sam.taps is (3, 1); expected two ascending blocks"),
    ],
)
def test_bad_configuration(options: list[str], words: str, tmp_path: Path) -> None:
    refused(build("--random-weights", *options, "--out", tmp_path / "b"), 2, words)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "sm86"], "--target is for --backend tensorrt or tensorrt-rtx; neither was given"),
        (["--target", "sm90", "--backend", "tensorrt-rtx"], "target sm90: TensorRT-RTX builds for compute capability"),
        (["--backend", "tensorrt"], "target host: no GPU was found here"),
    ],
)
def test_engines_that_cannot_be_built_are_refused_before_the_export(
    options: list[str], words: str, tmp_path: Path
) -> None:
    refused(build("--random-weights", *options, "--out", tmp_path / "b"), 2, words)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "options", [["--engine", "int8"], ["--backend", "tflite"], ["--refinement", "some"], ["--fast"]]
)
def test_unknown_choices(options: list[str]) -> None:
    result = build("--random-weights", *options)
    assert result.exit_code == 2
    assert options[0] in result.stderr


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(build("--random-weights", "--out", tmp_path / "file" / "b"), 1, "cannot write a bundle to")
    assert left_in(tmp_path) == ["file"]


def test_a_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    refused(build("--random-weights", "--out", tmp_path), 1, f"{tmp_path} exists and is not a bundle; name another")
    assert left_in(tmp_path) == ["thesis.txt"]
    assert left_in(tmp_path.parent).count(tmp_path.name) == 1


def failed(result: Result, code: int, words: str) -> None:
    error = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert words in error[0]
    assert result.stderr.splitlines()[-1] == error[0]
    assert result.exit_code == code


def test_missing_weights(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, words in (
        ("nowhere", "no such folder"),
        ("empty", "no dinov3_tiny_pretrain_lvd1689m*.pth or .safetensors"),
    ):
        failed(build("--weights", tmp_path / folder, "--out", tmp_path / "b"), 1, words)
    assert left_in(tmp_path) == ["empty"]


def test_a_missing_photo(tmp_path: Path) -> None:
    failed(build("--random-weights", "--photo", "[no].png", "--out", tmp_path / "b"), 2, "[no].png does not exist")
    assert left_in(tmp_path) == []


# --- runs


def test_a_whole_run_and_a_rebuild(tmp_path: Path) -> None:
    """As a command; the second run replaces what the first one wrote."""
    target = tmp_path / "bundle"
    engines = ["--backend", "onnxruntime", "--backend", "tensorrt-rtx", "--target", "sm86"]
    command = [*SCRIPT, *SMALLEST, "--engine", "fp16", *engines, "--out", str(target)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "onnxruntime fp16: " in result.stderr
    assert "of pixels labelled as by torch" in result.stderr
    assert f"bundle written to {target}" in result.stderr.splitlines()
    assert result.stderr.splitlines()[-1] == f"3 engines in {target}"
    assert "no engine was run: the parity gate needs a GPU of that kind" in result.stderr
    assert "random weights: this bundle is for shapes and speed" in result.stderr
    first = Bundle.open(target)
    assert [stage.name for stage in first.manifest.stages] == ["text_encoder", "backbone", "correlation"]
    assert first.manifest.precisions == ("fp32", "fp16")

    (target / "stale").touch()
    assert build(*SMALLEST, "--out", target).exit_code == 0
    second = Bundle.open(target)
    assert second.manifest.precisions == ("fp32",)
    assert second.manifest.files["onnx/backbone.fp32.onnx.data"] == first.manifest.files["onnx/backbone.fp32.onnx.data"]
    assert not (target / "stale").exists()
    assert left_in(tmp_path) == ["bundle"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_build_keeps_the_old_bundle(sent: signal.Signals, code: int, bundle_copy: Path) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    process = subprocess.Popen(
        [*SCRIPT, *SMALLEST, "--out", str(bundle_copy)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "text_encoder: fp32 graph" in line:
            break
    process.send_signal(sent)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in rest
    assert left_in(bundle_copy.parent) == ["copy"]
    assert (bundle_copy / "manifest.json").read_bytes() == before
    assert Bundle.open(bundle_copy).onnx("decoder", "fp32")


def test_a_full_disk(bundle_copy: Path) -> None:
    """A limit on the size of files stands in for the disk: the weights of the text encoder exceed it."""
    limit = 8 << 20
    command = [*SCRIPT, *SMALLEST, "--out", str(bundle_copy)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        "error: File too large: nothing unfinished is left; make room, or write to another disk"
    )
    assert left_in(bundle_copy.parent) == ["copy"]
    assert Bundle.open(bundle_copy).onnx("decoder", "fp32")


# --- parts


def test_calibration_images_are_those_of_the_folder(tmp_path: Path) -> None:
    colours = [(200, 0, 0), (0, 0, 200)]
    for name, colour in zip(("b.png", "a.PNG"), colours, strict=True):
        PIL.Image.new("RGB", (5, 3), colour).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    found = calibration_images(tmp_path)
    assert [image[0, 0].tolist() for image in found] == [[0, 0, 200], [200, 0, 0]]
    assert {image.shape for image in found} == {(3, 5, 3)}
    shipped = calibration_images(None)
    assert len(shipped) == 3
    assert {image.dtype for image in shipped} == {np.dtype(np.uint8)}
    for folder in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=f"--calibration {folder} holds no image; expected a folder with .png"):
            calibration_images(folder)


@pytest.mark.parametrize(
    ("backends", "engine", "runs"),
    [
        (["onnxruntime"], "fp32", ["onnxruntime fp32"]),
        (["onnxruntime"], "fp16", ["onnxruntime fp32", "onnxruntime fp16"]),
        (["openvino"], "fp32", ["openvino fp32", "openvino bf16"]),
        (["openvino"], "fp16", ["openvino fp32", "openvino bf16", "openvino fp16"]),
        (["onnxruntime-cuda"], "fp32", ["onnxruntime-cuda fp32"]),
        (["onnxruntime-cuda"], "fp16", ["onnxruntime-cuda fp32", "onnxruntime-cuda fp16"]),
        (["onnxruntime", "openvino"], "fp32", ["onnxruntime fp32", "openvino fp32", "openvino bf16"]),
    ],
)
def test_every_graph_is_run_in_every_engine(backends: list[str], engine: str, runs: list[str]) -> None:
    found = engine_runs(backends, Graphs(engine))
    assert [" ".join(run) for run in found] == runs


def test_the_parity_photo_is_varied_and_always_the_same() -> None:
    photo = generated_photo(120, 160)
    assert photo.shape == (120, 160, 3)
    assert photo.dtype == np.uint8
    assert np.array_equal(photo, generated_photo(120, 160))
    assert photo.std(axis=(0, 1)).min() > 20
    assert len(np.unique(photo)) > 200
