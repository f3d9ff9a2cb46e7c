"""Run-time choice of the instruction set, and when threads start."""

import json
import os
import subprocess
import sys

import pytest
from fuzz_kernels import available_instructions

import kernels

HASHES = """
import hashlib, json
import numpy as np, kernels
rng = np.random.default_rng(0)
photo = rng.integers(0, 256, (97, 131, 3), dtype=np.uint8)
crops, full = (rng.standard_normal(s, dtype=np.float32) for s in ((9, 8 * 8, 83), (14 * 14, 83)))
long = rng.standard_normal((1, 9, 4500), dtype=np.float32)
logits = rng.standard_normal((300, 23, 31), dtype=np.float32)
results = [kernels.build_info()["cpu"], kernels.lga_merge(long, normalize=True)]
for dtype in ("float32", "float16", "bfloat16"):
    for antialias in (False, True):
        results += kernels.preprocess(photo, 96, 64, 16, dtype=dtype, antialias=antialias)
for cast in (np.float32, np.float16):
    results += kernels.upsample_argmax(logits.astype(cast), (90, 70), scores=True)
    for options in ({}, {"normalize": True}, {"channels_first": True}):
        results.append(kernels.lga_merge(crops.astype(cast), full.astype(cast), 3, **options))
print(json.dumps([results[0], [hashlib.sha256(r.tobytes()).hexdigest() for r in results[1:]]]))
"""

THREADS = """
import os, json
import numpy as np, kernels
def count(): return len(os.listdir("/proc/self/task"))
before = count()
kernels.preprocess(np.zeros((64, 64, 3), np.uint8), 160, 96, 64)
kernels.lga_merge(np.zeros((4, 100, 192), np.float32), None, 5)
kernels.upsample_argmax(np.zeros((5, 40, 40), np.float32), (320, 320))
small = count()
kernels.upsample_argmax(np.zeros((100, 160, 160), np.float32), (640, 640))
print(json.dumps([small - before, count() - small]))
"""

# Every class of every tile at once, on threads whose stacks hold 1 MB.
STACKS = """
import json
import numpy as np, kernels
logits = np.random.default_rng(0).standard_normal((4096, 9, 70), dtype=np.float32)
print(json.dumps(int(kernels.upsample_argmax(logits, (64, 600)).max())))
"""


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def result_of(code: str, **environment: str):
    done = in_new_process(code, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_instruction_set_gives_the_same_bits():
    names = available_instructions()
    found = dict(result_of(HASHES, DINOV3SEG_CPU=name) for name in names)
    assert list(found) == names
    assert len({tuple(hashes) for hashes in found.values()}) == 1


def test_the_best_is_the_default():
    assert result_of(HASHES, DINOV3SEG_CPU="")[0] == available_instructions()[0]


def test_an_unknown_one_is_refused_in_one_line():
    done = in_new_process("import kernels; kernels.build_info()", DINOV3SEG_CPU="mmx")
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: DINOV3SEG_CPU: got 'mmx', expected one of those that this processor has: ")
    assert last.endswith(", ".join(available_instructions()))


SWITCH = """
import json, sys
import numpy as np, kernels
photo = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
found = []
for name in sys.argv[1:] or kernels.build_info()["simd"]:
    try: kernels._kernels.use_instructions(name)
    except ValueError as error: assert str(error).startswith(f"instructions: got '{name}', expected one of"); continue
    assert kernels.build_info()["cpu"] == name
    found.append([name, kernels.preprocess(photo, 96, None)[0].tobytes().hex()])
print(json.dumps(found))
"""


def test_one_process_can_compare_instruction_sets():
    found = result_of(SWITCH)
    assert [name for name, _ in found] == available_instructions()
    assert len({image for _, image in found}) == 1


needs_threads = pytest.mark.skipif(
    sys.platform != "linux" or not kernels.build_info()["openmp"], reason="needs Linux and a build with OpenMP"
)


@needs_threads
def test_no_thread_starts_for_little_work():
    assert result_of(THREADS, OMP_NUM_THREADS="3") == [0, 2]


@needs_threads
def test_scratch_is_below_a_megabyte_a_thread():
    assert result_of(STACKS, OMP_NUM_THREADS="2", OMP_STACKSIZE="1M") > 0
