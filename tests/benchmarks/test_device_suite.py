"""One command for a machine with a GPU: every step is independent, ended in time, and said plainly."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import device_suite
from benchmarks.device_suite import TAIL, Step, Suite, app, run, steps


def python(code: str, **fields: object) -> Step:
    return Step("x", (sys.executable, "-c", code), **{"limit": 60, **fields})  # type: ignore[arg-type]


def test_outcomes() -> None:
    assert run(python("print('fine')")).result == "ok"
    failed = run(python("import sys; print('x' * 9999); sys.exit('broken')"))
    assert failed.result == "failed"
    assert failed.output.endswith("broken\n")
    assert len(failed.output) == TAIL
    missing = run(python("1/0", lacks=lambda: "no nvcc"))
    assert (missing.result, missing.seconds) == ("no nvcc", 0)


def test_a_step_that_hangs_is_ended_with_its_children() -> None:
    start = time.monotonic()
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert run(python(code, limit=1.5)).result == "too long"
    assert time.monotonic() - start < 20


def test_every_step_is_there(tmp_path: Path) -> None:
    found = list(steps(tmp_path))
    assert len({step.name for step in found}) == len(found)
    for step in found:
        scripts = [part for part in step.command if part.endswith(".py")]
        assert all((device_suite.ROOT / script).is_file() for script in scripts), step.name
    quick = [step.name for step in found if not step.whole]
    assert "CUDA kernels" in quick
    assert "tiny-fp16: tensorrt engines" in quick
    assert "bundle vitl" not in quick


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        python("print('a')"),
        Step("b", (sys.executable, "-c", "raise SystemExit(3)"), 60),
        Step("c", ("never",), 60, lambda: "no never"),
        Step("d", ("never",), 60, whole=True),
    ]
    monkeypatch.setattr(device_suite, "steps", lambda out: iter(made))
    monkeypatch.setattr(device_suite, "gpu_name", lambda: "NVIDIA H100 80GB HBM3")
    result = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path)])
    assert result.exit_code == 1
    suite = Suite.model_validate_json((tmp_path / "nvidia-h100-80gb-hbm3" / "suite.json").read_text())
    assert [outcome.result for outcome in suite.outcomes] == ["ok", "failed", "no never"]
    made[1:2] = []
    assert CliRunner().invoke(app, ["--quick", "--out", str(tmp_path)]).exit_code == 0


def test_without_a_gpu(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "error: no NVIDIA GPU was found here" in result.stderr
    assert list(tmp_path.iterdir()) == []
