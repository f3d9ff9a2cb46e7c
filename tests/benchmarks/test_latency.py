"""The latency benchmark: its arithmetic, its result file, its picture, its one-line errors."""

from __future__ import annotations

import getpass
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import heed_ctrl_c

from benchmarks import contestants, latency, machine, measure, record
from export.presets import PRESETS
from runtime.errors import InputError, ParityError
from runtime.manifest import Manifest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "benchmarks/latency.py"]
QUICK = ["--no-torch", "--classes", "2", "--threads", "1", "--warmup", "0", "--frames", "1"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120)


def error_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The only line of output, checked to be an error with the expected exit code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="session")
def fp32_run(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The results folder and what was printed."""
    out = tmp_path_factory.mktemp("results")
    photo = out / "private" / "photo.png"
    photo.parent.mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)).save(photo)
    done = run(
        *("--bundle", small_bundle, "--photo", photo, "--classes", "wall, floor, red mug"),
        *("--frames", "4", "--warmup", "1", "--threads", "1", f"--out={out}"),
    )
    assert done.returncode == 0, done.stderr
    [data] = out.glob("cpu-*/*.json")
    return data, done.stderr


# Arithmetic.


def test_percentiles_of_known_data() -> None:
    spread = measure.spread(list(range(101)))
    assert (spread.p50, spread.p90, spread.p99, spread.mean) == (50, 90, 99, 50)
    assert measure.spread([7.0]).p99 == 7


def test_ratio_is_the_median_over_rounds_each_against_itself() -> None:
    """The machine slows down tenfold halfway: ratios of medians would be wrong, paired ones are not."""
    slowness = (1, 1, 10, 10, 10)
    frames = [
        measure.Frame(contestant=name, round=turn, start_s=0, stages={"total": ms * slow})
        for turn, slow in enumerate(slowness)
        for name, ms in (("engine", 2.0), ("torch", 5.0))
    ]
    assert measure.ratios(frames) == {"torch": {"total": 2.5}}
    assert measure.ratios([frame for frame in frames if frame.contestant == "engine"]) == {}


def test_disagreeing_labels_are_two_models() -> None:
    task = contestants.Task(
        bundle=Path(),
        backend="onnxruntime",
        precision="fp32",
        threads=1,
        classes=("a",),
        weights=None,
        photo=Path(),
        warmup=0,
        frames=1,
    )
    measure.check_agreement(0.999, task)
    measure.check_agreement(None, task)
    with pytest.raises(ParityError, match=r"agree on 50\.0%.*two different models"):
        measure.check_agreement(0.5, task)


# Machine and command line.


@pytest.mark.parametrize(
    ("cpu", "cores", "expected"),
    [
        ("AMD EPYC", 2, "cpu-amd-epyc-2core"),
        ("AMD EPYC 7B13 64-Core Processor", 8, "cpu-amd-epyc-7b13-8core"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", 4, "cpu-intel-xeon-4core"),
        ("", 1, "cpu-unknown-1core"),
    ],
)
def test_machine_slug(cpu: str, cores: int, expected: str) -> None:
    assert machine.machine_slug(cpu, cores) == expected


def test_cpu_name_without_proc(tmp_path: Path) -> None:
    assert machine.cpu_name(tmp_path / "none")
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 38.40\n")
    assert machine.cpu_name(tmp_path / "arm")


def test_peak_memory_is_this_process_own() -> None:
    """A child of a large process must not inherit its parent's peak, as ru_maxrss does on Linux."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    large = np.ones(25_000_000)
    code = "from benchmarks.machine import peak_memory_mb; print(peak_memory_mb())"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert float(child.stdout) < 100 < large.nbytes / 2**20 < machine.peak_memory_mb()


def test_command_holds_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--bundle", f"{tmp_path}/bundles/tiny", "--photo=/home/jane/my cat.png", "--classes", "a, b"]
    command = record.relative_command("benchmarks/latency.py", arguments)
    assert command == "python benchmarks/latency.py --bundle bundles/tiny '--photo=my cat.png' --classes 'a, b'"


# A run against torch.


def test_table_and_sentences(fp32_run: tuple[Path, str]) -> None:
    _, printed = fp32_run
    for word in ("torch p50", "backbone crops", "end to end", "frames/s", "peak memory", "labelled alike"):
        assert word in printed
    assert "onnxruntime fp32 computes in: fp32" in printed
    assert "weights are random" in printed


def test_result_file_follows_the_schema(fp32_run: tuple[Path, str], small_bundle: Path) -> None:
    written = record.Record.model_validate_json(fp32_run[0].read_text())
    assert fp32_run[0].stem == "tiny-onnxruntime-fp32"
    assert (written.threads, written.workload.classes, written.workload.photo_size) == (1, 3, (60, 90))
    assert written.workload.photo == "photo.png"
    assert written.bundle.random_weights
    assert written.bundle.manifest_sha256 == importlib.import_module("runtime.bundle").sha256(
        small_bundle / "manifest.json"
    )
    assert written.agreement > 0.99
    assert [one.contestant for one in written.alone] == ["engine", "torch"]
    for one in written.alone:
        assert 0 < one.start_mb <= one.loaded_mb <= one.peak_mb
        assert min(one.imports_ms, one.load_ms, one.text_ms, one.first_frame["total"]) > 0


def test_ratios_come_from_interleaved_frames(fp32_run: tuple[Path, str]) -> None:
    written = record.Record.model_validate_json(fp32_run[0].read_text())
    order = [frame.contestant for frame in sorted(written.frames, key=lambda frame: frame.start_s)]
    rounds = [set(order[start : start + 2]) for start in range(0, len(order), 2)]
    assert rounds == [{"engine", "torch"}] * 4
    assert len({order[start] for start in range(0, len(order), 2)}) == 2, "one contestant always begins"
    assert written.ratio == measure.ratios(written.frames)
    assert written.warm["engine"] == measure.spreads(written.frames, "engine")


def test_result_file_names_no_folder_and_no_user(fp32_run: tuple[Path, str], small_bundle: Path) -> None:
    text = fp32_run[0].read_text()
    json.loads(text)
    for secret in (str(small_bundle.parent), str(ROOT), str(Path.home()), "private", "/tmp"):
        assert secret not in text
    if len(getpass.getuser()) > 4:  # "root" is a word
        assert getpass.getuser() not in text


def test_picture_is_written_beside_the_result(fp32_run: tuple[Path, str]) -> None:
    pytest.importorskip("matplotlib")
    with Image.open(fp32_run[0].with_suffix(".png")) as picture:
        assert picture.width > 1000
    assert not list(fp32_run[0].parent.glob(".*")), "a temporary file was left"


def test_fp16_says_what_this_cpu_does(small_bundle: Path, tmp_path: Path) -> None:
    done = run("--bundle", small_bundle, "--engine", "fp16", *QUICK, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fp16 storage, fp32 arithmetic" in done.stderr
    assert "This CPU runs the fp16 graph with casts" in done.stderr
    assert "say nothing about an engine in fp16" in done.stderr
    assert "no torch column: --no-torch was given" in done.stderr
    [data] = tmp_path.glob("*/tiny-onnxruntime-fp16.json")
    assert json.loads(data.read_text())["agreement"] is None


def test_without_torch_a_sentence_instead_of_the_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    manifest = Manifest.model_construct(random_weights=True)
    assert "torch is not installed" in contestants.why_no_torch(manifest, None, False)


def test_checkpoint_bundle_without_weights_has_no_torch_column() -> None:
    model = PRESETS["vits"].model_dump(mode="json")
    manifest = Manifest.model_construct(random_weights=False, model=model)
    assert "--weights" in contestants.why_no_torch(manifest, None, False)


# Errors.


def test_names_are_made_up_only_where_any_word_will_do() -> None:
    assert latency.class_names("2", ()) == ("object 0", "object 1")
    assert latency.class_names("5", ("cup", "wall")) == ("cup", "wall", "cup cup", "cup wall", "wall cup")
    assert latency.class_names("cup, door", ("cup",)) == ("cup", "door")
    with pytest.raises(InputError, match="expected 1 to 1000, or names"):
        latency.class_names("0", ())


def test_help_is_quick_and_needs_no_torch() -> None:
    code = "import sys; sys.argv = ['x', '--help']\nfrom benchmarks import latency\ntry: latency.app()\n"
    code += "except SystemExit: pass\nassert not {'torch', 'onnxruntime', 'pydantic'} & set(sys.modules)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--bundle" in done.stdout
    assert time.perf_counter() - start < 5  # 0.3 s on a quiet machine


def test_missing_bundle(tmp_path: Path) -> None:
    assert "is not a bundle" in error_line(run("--bundle", tmp_path / "none", "--out", tmp_path), 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--engine", "int3"], "expected one of fp32, fp16, bf16"),
        (["--backend", "abacus"], "expected auto or one of"),
        (["--backend", "onnxruntime", "--engine", "bf16"], "no bf16 arithmetic"),
        (["--classes", "0"], "expected 1 to 1000"),
        (["--photo", "none.png"], "none.png"),
        (["--weights", "."], "built with random weights"),
    ],
)
def test_unusable_options(small_bundle: Path, tmp_path: Path, option: list[str], message: str) -> None:
    assert message in error_line(run("--bundle", small_bundle, "--out", tmp_path, *option), 2)
    assert not list(tmp_path.iterdir())


def test_altered_bundle_is_reported_by_its_own_process(small_bundle: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(small_bundle, tmp_path / "altered")
    graph = next((altered / "onnx").glob("backbone.fp32.onnx"))
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(content)
    done = run("--bundle", altered, "--no-torch", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "was altered" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_other_weights_than_the_bundle_was_built_from(tmp_path: Path) -> None:
    manifest = Manifest.model_construct(random_weights=False, weights={"dinov3.pth": "0" * 64}, model={})
    with pytest.raises(InputError, match=r"dinov3\.pth is missing"):
        contestants.torch_weights(manifest, tmp_path)
    (tmp_path / "dinov3.pth").write_bytes(b"other")
    with pytest.raises(InputError, match=r"has sha256 .*expected 000000000000"):
        contestants.torch_weights(manifest, tmp_path)


def test_output_folder_that_cannot_be_written(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("--bundle", small_bundle, "--out", tmp_path / "file" / "results")
    assert "cannot write results" in error_line(done, 1)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_interrupt_leaves_nothing(small_bundle: Path, tmp_path: Path) -> None:
    command = [*COMMAND, *QUICK, "--bundle", str(small_bundle), "--frames", "100000", "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c) as process:
        assert process.stderr is not None
        while "in turn" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed.strip() == "interrupted; nothing unfinished is left"
    assert not list(tmp_path.iterdir())
