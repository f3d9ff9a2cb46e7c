"""Where an engine for which GPU can be built, and what is said where it cannot."""

from __future__ import annotations

import pytest

from runtime.errors import InputError
from runtime.gpu import Gpu
from runtime.targets import AHEAD_OF_TIME, TARGETS, resolve

ADA = Gpu("NVIDIA L4", "8.9", integrated=False)
ORIN = Gpu("Orin", "8.7", integrated=True)


def test_rtx_builds_ahead_of_time_on_any_machine() -> None:
    names = ["sm120", "sm80", "sm89", "sm86", "sm86"]
    for gpu in (None, ADA):
        found = resolve("tensorrt-rtx", names, gpu)
        assert [target.name for target in found] == ["sm80", "sm86", "sm89", "sm120"]
        assert {target.compute_capability for target in found} <= set(AHEAD_OF_TIME)


def test_host_is_the_gpu_of_this_machine() -> None:
    assert resolve("tensorrt", [], ADA) == (TARGETS["sm89"],)
    assert resolve("tensorrt-rtx", ["host"], ADA) == (TARGETS["sm89"],)
    assert resolve("tensorrt", ["host"], ORIN) == (TARGETS["jetson-orin"],)
    [unknown] = resolve("tensorrt", [], Gpu("NVIDIA Next", "13.0", integrated=False))
    assert (unknown.name, unknown.compute_capability, unknown.devices) == ("sm130", "13.0", "NVIDIA Next")


@pytest.mark.parametrize(
    ("backend", "names", "gpu", "words"),
    [
        ("tensorrt", [], None, "target host: no GPU was found here .*--backend tensorrt-rtx --target sm86"),
        ("tensorrt-rtx", ["sm86", "sm42"], None, "target 'sm42' does not exist; expected host or one of sm75, sm80"),
        (
            "tensorrt-rtx",
            ["sm90"],
            None,
            "target sm90: TensorRT-RTX builds for compute capability .* not 9.0; copy",
        ),
        (
            "tensorrt-rtx",
            ["jetson-orin"],
            None,
            "does not run on Jetson; copy the bundle to the AGX Orin",
        ),
        ("tensorrt", ["sm86"], None, r"there is none here\); copy the bundle to the RTX 30"),
        ("tensorrt", ["jetson-thor"], ADA, r"here that is NVIDIA L4, 8.9\); copy the bundle to the AGX Thor"),
    ],
)
def test_what_cannot_be_built_here(backend: str, names: list[str], gpu: Gpu | None, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        resolve(backend, names, gpu)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
