"""The paper's full-size model. Minutes and gigabytes: `make test-slow`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import Bundle
from runtime.segmenter import Segmenter

ROOT = Path(__file__).parents[2]
MEMORY_LIMIT = 16e9  # bytes, for a build on a laptop


@pytest.mark.slow
def test_full_size_build_and_frame(tmp_path: Path) -> None:
    command = [sys.executable, "export/build_engines.py", "--preset", "vitl", "--random-weights"]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "vitl")], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert usage.ru_maxrss * 1024 < MEMORY_LIMIT
    manifest = Bundle.open(tmp_path / "vitl").manifest
    assert max(row.relative_rms_error for row in manifest.parity) < 1e-4
    assert manifest.end_to_end[0].agreement > 0.999
    photo = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    with (
        pytest.warns(UserWarning, match="random weights"),
        Segmenter.load(tmp_path / "vitl", [f"thing {i}" for i in range(20)], cache_dir=tmp_path) as segmenter,
    ):
        assert segmenter(photo).labels.shape == (720, 1280)
