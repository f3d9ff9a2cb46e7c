"""The emulated CUDA kernels once more, with every memory access checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def runtime_library(name: str) -> str:
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    try:
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        path = name
    if path == name:
        pytest.skip(f"the C++ compiler has no {name}")
    return path


@pytest.mark.slow
def test_no_access_outside_a_buffer_and_no_undefined_behaviour():
    libraries = runtime_library("libasan.so"), runtime_library("libubsan.so")
    environment = {
        **os.environ,
        "CUDA_EMULATOR_FLAGS": "-fsanitize=address,undefined -fno-sanitize-recover=undefined -g",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",  # Python leaks; fibres switch stacks
    }
    tests = Path(__file__).with_name("test_cuda_results.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "not gpu", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
