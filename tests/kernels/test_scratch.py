"""No kernel needs a megabyte a thread: heap counted by the allocator, shared tables included. The stack: see
test_instructions.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-trapping-math", "-w"]
MEGABYTE = 1_000_000

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which(COMPILER), reason=f"needs Linux and {COMPILER}"
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    program = tmp_path_factory.mktemp("scratch") / "scratch"
    sources = sorted((ROOT / "kernels/cpu").rglob("*.cpp"))
    includes = [f"-I{ROOT / folder}" for folder in ("kernels/include", "kernels/cpu")]
    defines = ["-DKERNELS_ISA=baseline", "-DKERNELS_BASELINE=baseline"]
    command = [COMPILER, *FLAGS, *defines, *includes, *sources, Path(__file__).with_name("scratch.cpp")]
    subprocess.run([*command, "-o", program], check=True)

    def run(kernel: str, *numbers: int) -> int:
        done = subprocess.run([program, kernel, *map(str, map(int, numbers))], capture_output=True, check=True)
        return int(done.stdout)

    return run


@pytest.mark.parametrize("channels", [1024, 8192, 100_000])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("channels_first", [False, True])
def test_lga_merge(scratch, channels, normalize, channels_first):
    most = scratch("lga_merge", 2, 3, 2, channels, normalize, channels_first)
    assert most < 140_000 and (most > 0 or not (normalize or channels_first))


@pytest.mark.parametrize("size", [1, 3, 640, 4096])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("pixel", [1, 3, 4])
def test_preprocess(scratch, size, antialias, pixel):
    assert 0 < scratch("preprocess", 700, 16384, size, antialias, pixel) < MEGABYTE


@pytest.mark.parametrize("numbers", [(65535, 1, 1, 2, 2), (3, 4, 512, 4, 16384), (3, 512, 4, 16384, 4)])
def test_upsample_argmax(scratch, numbers):
    assert 0 < scratch("upsample_argmax", *numbers) < MEGABYTE
