"""The kernel benchmark: its arithmetic, its files, and that no script of its folder takes it for the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import kernel_cases
from benchmarks import kernels as benchmark
from benchmarks.kernel_cases import Case
from benchmarks.kernel_record import KernelRecord, measured, table
from benchmarks.machine import this_machine
from kernels import cuda_api

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["latency.py", "accuracy.py", "kernels.py"]

# As a script of the folder sees it where the packages are installed but not in editable mode.
FIND_KERNELS = """
import importlib.util, runpy, sys
folder, script, root = sys.argv[1:]
sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable")]
sys.path[:0] = [folder, root]
runpy.run_path(script, run_name="imported")
print(importlib.util.find_spec("kernels").origin)
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_find_the_package_not_the_benchmark(script):
    folder = ROOT / "benchmarks"
    command = [sys.executable, "-c", FIND_KERNELS, str(folder), str(folder / script), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == "__init__.py"


def test_ratio_and_share():
    case = Case("preprocess", "x", moved=10**9, operations=1, contestants={})
    found = measured(case, {"ours": [100.0, 200.0, 100.0], "theirs": [300.0, 500.0, 400.0]}, bandwidth=20.0)
    assert found.timings[1].ratio == 3.0  # of 3, 2.5 and 4
    assert found.share == pytest.approx(0.5)  # 1 GB in 100 ms is half of 20 GB/s


def small_case() -> Case:
    case = kernel_cases.lga_merge(4, 16, channels=16)
    return Case(case.kernel, case.inputs, case.moved, case.operations, case.contestants)


def test_contestants_do_the_same_job():
    merge = small_case().contestants
    expected = merge["numpy slices"](0).copy()
    for name in ("ours", "torch fold"):
        np.testing.assert_allclose(np.asarray(merge[name](0)), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(merge["ONNX Runtime"](0)[0], expected, rtol=0, atol=1e-5)

    logits = np.random.default_rng(0).standard_normal((3, 160, 160), dtype=np.float32)
    argmax = kernel_cases.upsample_argmax("noise", logits).contestants
    labels = argmax["ours"](0).copy()
    for name in ("torch", "OpenCV", "numpy"):
        assert np.mean(np.asarray(argmax[name](0)).reshape(640, 640) == labels) > 0.999
    assert np.mean(argmax["ONNX Runtime"](0)[0][0] == labels) > 0.999

    resize = kernel_cases.preprocess(384, 256).contestants
    image, crops = resize["ours"](0)
    for name, tolerance in (("torch", 1e-5), ("numpy", 1e-5), ("ONNX Runtime", 1e-4), ("OpenCV and numpy", 0.05)):
        theirs = resize[name](0)
        np.testing.assert_allclose(np.asarray(theirs[0]), image, rtol=0, atol=tolerance)
        np.testing.assert_allclose(np.asarray(theirs[1]), crops, rtol=0, atol=tolerance)


def test_record_table_and_picture(tmp_path):
    rig = benchmark.cpu_rig()
    case = benchmark.run_case(small_case(), rig, seconds=0)
    assert case.ours.contestant == "ours" and case.bandwidth > 0
    record = KernelRecord(
        date="2026-01-01",
        command="python benchmarks/kernels.py",
        device="cpu",
        machine=this_machine(),
        versions={},
        build={"cpu": "avx2"},
        load_average=(None, None),
        logits="smooth",
        peak=100.0,
        remarks=(),
        cases=(case,),
    )
    Console(file=(tmp_path / "table.txt").open("w"), width=130).print(table(record))
    data, picture = benchmark.write(record, tmp_path, "kernels")
    assert KernelRecord.model_validate_json(data.read_text()) == record
    assert data.name == "kernels.json" and picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(cuda_api.available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_one_line():
    command = [sys.executable, "benchmarks/kernels.py", "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    [line] = done.stderr.strip().splitlines()
    assert done.returncode != 0 and line.startswith("error: --device is cuda; there is no GPU here")
