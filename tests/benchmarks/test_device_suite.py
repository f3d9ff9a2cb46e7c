"""One command for a machine with a GPU: every step is independent, ended in time, and said plainly."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from benchmarks import device_suite, suite_steps
from benchmarks.device_suite import TAIL, Suite, app, run
from benchmarks.suite_steps import TINY, VITL, Step, steps
from runtime.gpu import Gpu

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", integrated=False)


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> None:
    """Steps inherit what their parent does with it, and a test run in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def python(code: str, **fields: object) -> Step:
    return Step("x", (sys.executable, "-c", code), **{"limit": 60, **fields})  # type: ignore[arg-type]


def test_outcomes() -> None:
    assert run(python("print('fine')"), 60).result == "ok"
    failed = run(python("import sys; print('x' * 9999); sys.exit('broken')"), 60)
    assert failed.result == "failed"
    assert failed.output.endswith("broken\n")
    assert len(failed.output) == TAIL
    missing = run(python("1/0", lacks=lambda: "no nvcc"), 60)
    assert (missing.result, missing.seconds) == ("no nvcc", 0)


def test_a_step_that_hangs_is_ended_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_suite, "GRACE", 1.0)
    start = time.monotonic()
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert run(python(code, limit=1.5), 60).result == "too long"
    stubborn = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    assert run(python(stubborn, limit=1.5), 60).result == "too long"
    assert time.monotonic() - start < 30


def test_a_step_that_is_ended_may_tidy_up(tmp_path: Path) -> None:
    """As an export does, whose half-written folder is removed."""
    partial = tmp_path / "partial"
    code = (
        f"import pathlib, time; p = pathlib.Path({str(partial)!r}); p.touch()\ntry: time.sleep(60)\nfinally: p.unlink()"
    )
    found = run(python(code, limit=6, advice="build it elsewhere"), 60)
    assert (found.result, found.advice) == ("too long", "build it elsewhere")
    assert not partial.exists()


def test_the_suites_time_is_the_last_word() -> None:
    spent = run(python("1/0", advice="later"), 4.9)
    assert (spent.result, spent.seconds, spent.advice) == ("no time left", 0, "later")
    start = time.monotonic()
    assert run(python("import time; time.sleep(60)"), 5.5).result == "too long"
    assert time.monotonic() - start < 25


def test_a_bundle_leaves_time_for_its_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[float] = []
    made = [python("", leaves=200.0), python("")]
    monkeypatch.setattr(device_suite, "steps", lambda out, gpu, quick: iter(made))
    monkeypatch.setattr(device_suite, "run", lambda step, left: given.append(left))
    device_suite.run_all(tmp_path, H100, False, time.monotonic() + 600)
    assert 380 < given[0] < 400
    assert 580 < given[1] < 600


def test_every_step_is_there(tmp_path: Path) -> None:
    found = list(steps(tmp_path, H100, quick=False))
    assert len({step.name for step in found}) == len(found)
    for step in found:
        scripts = [part for part in step.command if part.endswith(".py")]
        assert all((device_suite.ROOT / script).is_file() for script in scripts), step.name
    names, quick = [step.name for step in found], [step.name for step in steps(tmp_path, H100, quick=True)]
    assert "CUDA kernels" in quick
    assert {"tiny-fp16: tensorrt engines", "tiny-fp16: accuracy"} <= set(quick)
    assert "vitl-random: onnxruntime-cuda frames" in names
    assert {name for name in names if "memcheck" in name or "vitl" in name}.isdisjoint(quick)
    kernels = next(step for step in found if step.name == "CUDA kernels")
    assert "cmake.define.CMAKE_CUDA_ARCHITECTURES=90" in kernels.command


def test_options_of_the_steps_are_real(tmp_path: Path) -> None:
    """A typing mistake would show on a GPU only."""
    from benchmarks.accuracy import app as accuracy
    from benchmarks.kernels import app as kernels
    from benchmarks.latency import app as latency
    from export.build_engines import app as export
    from runtime.__main__ import app as runtime

    apps = {"benchmarks/kernels.py": kernels, "benchmarks/latency.py": latency, "export/build_engines.py": export}
    apps["benchmarks/accuracy.py"] = accuracy
    for step in steps(tmp_path, H100, quick=False):
        script = next((part for part in step.command if part in apps), None)
        if script or step.command[1:3] == ("-m", "runtime"):
            arguments = step.command[step.command.index(script or "runtime") + 1 :]
            done = CliRunner().invoke(apps.get(script or "", runtime), [*arguments, "--help"])
            assert done.exit_code == 0, (step.name, done.output)


def test_torch_is_compiled_once_and_never_when_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_steps, "lacks_backend", lambda name: "no" if name == "tensorrt" else "")

    def compiling(quick: bool) -> list[str]:
        frames = [step for step in steps(tmp_path, H100, quick) if step.name.endswith("frames")]
        return [step.name for step in frames if "--no-compile" not in step.command]

    assert compiling(False) == ["tiny-fp16: tensorrt-rtx frames", "vitl-random: tensorrt-rtx frames"]
    assert compiling(True) == []


def test_what_a_step_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite_steps, "ROOT", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert suite_steps.lacks_program("nvcc") == "no nvcc"
    assert suite_steps.lacks_module("no_such_module") == "no Python module no_such_module"
    assert suite_steps.lacks_compiler() == "no nvcc"  # and in this folder there are no kernels
    assert suite_steps.lacks_backend("onnxruntime-cuda") == "this ONNX Runtime has no CUDA"
    [*_, frames] = suite_steps.measured("onnxruntime-cuda", VITL, tmp_path, compiles=False)
    monkeypatch.setattr(suite_steps, "lacks_backend", lambda name: "")
    assert frames.lacks() == f"no {VITL}"
    (tmp_path / TINY).mkdir(parents=True)
    (tmp_path / TINY / "manifest.json").touch()
    assert suite_steps.tiny_bundle().lacks() == f"{TINY} is there"
    assert suite_steps.vitl_bundle().lacks() == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert suite_steps.vitl_bundle().lacks() == "no Python module torch"
    monkeypatch.setattr(suite_steps.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    assert suite_steps.lacks_compiler() == "they are built"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        python("print('a')"),
        Step("b", (sys.executable, "-c", "raise SystemExit(3)"), 60),
        Step("c", ("never",), 60, lambda: "no never"),
        Step("d", ("never",), 60, leaves=600, advice="copy it here"),
    ]
    monkeypatch.setattr(device_suite, "steps", lambda out, gpu, quick: iter(made if quick else []))
    monkeypatch.setattr(device_suite, "this_gpu", lambda: H100)
    result = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "d: copy it here" in result.stderr
    suite = Suite.model_validate_json((tmp_path / "nvidia-h100-80gb-hbm3" / "suite.json").read_text())
    assert [outcome.result for outcome in suite.outcomes] == ["ok", "failed", "no never", "no time left"]
    assert (suite.gpu.name, suite.minutes) == (H100.name, 3.0)
    made[1:2] = []
    assert CliRunner().invoke(app, ["--quick", "--minutes", "1", "--out", str(tmp_path)]).exit_code == 0


def test_without_a_gpu(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "error: no NVIDIA GPU was found here" in result.stderr
    assert list(tmp_path.iterdir()) == []
