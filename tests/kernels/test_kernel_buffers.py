"""What all kernels share: out=, signatures, threads, the GIL, memory."""

import inspect
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import kernels
from kernels import reference

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
CROPS = RNG.standard_normal((4, 36, 8), dtype=np.float32)
FULL = RNG.standard_normal((100, 8), dtype=np.float32)
LOGITS = RNG.standard_normal((5, 9, 11), dtype=np.float32)


@pytest.mark.parametrize("name", ["preprocess", "lga_merge", "upsample_argmax"])
def test_reference_has_the_same_signature(name):
    assert inspect.signature(getattr(kernels, name)) == inspect.signature(getattr(reference, name))


@pytest.mark.parametrize("module", [kernels, reference])
def test_out_is_filled_and_returned(module):
    for dtype, element in [("float32", np.float32), ("float16", np.float16), ("bfloat16", np.uint16)]:
        image, crops = module.preprocess(PHOTO, 64, 32, 16, dtype=dtype)
        buffers = np.full(image.shape, 9, element), np.full(crops.shape, 9, element)
        given = module.preprocess(PHOTO, 64, 32, 16, out=buffers, dtype=dtype)
        assert given[0] is buffers[0] and given[1] is buffers[1]
        assert np.array_equal(buffers[0], image) and np.array_equal(buffers[1], crops)

    image = module.preprocess(PHOTO, 64, None)[0]
    buffer = np.full_like(image, 9)
    given = module.preprocess(PHOTO, 64, None, out=(buffer, None))
    assert given[0] is buffer and given[1] is None and np.array_equal(buffer, image)

    for arguments in [(CROPS, FULL, 4), (CROPS, None, 4), (None, FULL, 4)]:
        merged = np.full_like(FULL, 9)
        assert module.lga_merge(*arguments, out=merged) is merged
        assert np.array_equal(merged, module.lga_merge(*arguments))

    labels, scores = module.upsample_argmax(LOGITS, (20, 30), scores=True)
    buffers = np.full_like(labels, 9), np.full_like(scores, 9)
    given = module.upsample_argmax(LOGITS, (20, 30), scores=True, out=buffers)
    assert given[0] is buffers[0] and given[1] is buffers[1]
    assert np.array_equal(buffers[0], labels) and np.array_equal(buffers[1], scores)
    only_labels = np.full_like(labels, 9)
    assert module.upsample_argmax(LOGITS, (20, 30), out=only_labels) is only_labels
    assert np.array_equal(only_labels, labels)


def test_build_info():
    info = kernels.build_info()
    assert list(info) == ["version", "compiler", "openmp", "simd", "cpu", "cuda_architectures"]
    assert info["version"] and info["compiler"] and isinstance(info["openmp"], bool)
    assert all(isinstance(name, str) for name in info["simd"] + info["cuda_architectures"])


def in_new_process(code: str, **environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ALL_KERNELS = """
import hashlib, json
import numpy as np, kernels
rng = np.random.default_rng(0)
photo = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
crops, full = (rng.standard_normal(s, dtype=np.float32) for s in ((9, 24 * 24, 96), (40 * 40, 96)))
logits = rng.standard_normal((12, 80, 80), dtype=np.float32)
results = [*kernels.preprocess(photo, 640, 384, 128), kernels.lga_merge(crops, full, 8),
           *kernels.upsample_argmax(logits, (501, 1203), scores=True)]
print(json.dumps([hashlib.sha256(r.tobytes()).hexdigest() for r in results]))
"""


def test_thread_count_does_not_change_a_bit():
    one = in_new_process(ALL_KERNELS, OMP_NUM_THREADS="1")
    assert one == in_new_process(ALL_KERNELS, OMP_NUM_THREADS="2")
    assert one == in_new_process(ALL_KERNELS, OMP_NUM_THREADS="7")


PEAK_GROWTH = """
import resource
import numpy as np, kernels
logits = np.random.default_rng(0).standard_normal((200, 160, 160), dtype=np.float32)
kernels.upsample_argmax(logits, (64, 64))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kernels.upsample_argmax(logits, (1080, 1920), scores=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux only")
def test_upsampled_logits_are_never_in_memory():
    """(200, 1080, 1920) float32 would be 1582 MB; labels and scores are 10 MB."""
    assert in_new_process(PEAK_GROWTH) < 60


def test_the_gil_is_released():
    logits = RNG.standard_normal((200, 160, 160), dtype=np.float32)
    worker = threading.Thread(target=kernels.upsample_argmax, args=(logits, (1080, 1920)))
    switches = 0
    worker.start()
    while worker.is_alive():
        switches += 1
        time.sleep(0.001)
    assert switches > 10  # with the GIL held this thread would get one turn, at the end
