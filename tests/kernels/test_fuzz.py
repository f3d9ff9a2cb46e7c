"""A few of the cases that `make sanitize` runs by the thousand, on every instruction set that this processor has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_kernels import KERNELS, available_instructions, run

CASES = 120


@pytest.mark.parametrize("name", KERNELS)
def test_in_use(name):
    run(name, CASES, seed=1_000_000)


def test_every_other_instruction_set():
    fuzz = Path(__file__).with_name("fuzz_kernels.py")
    for instructions in available_instructions()[1:]:
        command = [sys.executable, str(fuzz), "--count", str(CASES), "--seed", "2000000"]
        done = subprocess.run(
            command, env={**os.environ, "DINOV3SEG_CPU": instructions}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"({instructions})") == len(KERNELS)
