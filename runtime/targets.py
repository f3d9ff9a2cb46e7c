"""For which GPU an engine is built, and where that can be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from runtime.errors import InputError
from runtime.gpu import Gpu

EngineBackend = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Target:
    """`compute_capability` as NVIDIA writes it, "8.6"; `jetson`: only JetPack's own TensorRT runs there."""

    name: str
    compute_capability: str
    devices: str
    jetson: bool = False


TARGETS: Final = {
    target.name: target
    for target in (
        Target("sm75", "7.5", "RTX 20, T4"),
        Target("sm80", "8.0", "A100, A30"),
        Target("sm86", "8.6", "RTX 30, A10, A40"),
        Target("sm89", "8.9", "RTX 40, L4, L40"),
        Target("sm90", "9.0", "H100, H200"),
        Target("sm100", "10.0", "B200"),
        Target("sm120", "12.0", "RTX 50, RTX PRO Blackwell"),
        Target("jetson-orin", "8.7", "AGX Orin, Orin NX, Orin Nano", jetson=True),
        Target("jetson-thor", "11.0", "AGX Thor", jetson=True),
    )
}
# TensorRT-RTX 1.7 builds for these on any machine, several at once; kernels are compiled when the engine first runs.
# Not for 7.5, which it knows: it has no fp32 products there, and the text encoder stays in fp32.
AHEAD_OF_TIME: Final = ("8.0", "8.6", "8.9", "12.0")


def resolve(backend: EngineBackend, names: Sequence[str], gpu: Gpu | None) -> tuple[Target, ...]:
    """The targets of one build, in ascending order.

    Args:
        names: Keys of `TARGETS`, or "host" for the GPU of this machine; none: "host".

    Raises:
        InputError: an unknown name, or a target that this backend cannot build for on this machine.
    """
    found = {_named(name, gpu) for name in names or ["host"]}
    for target in found:
        (_check_rtx if backend == "tensorrt-rtx" else _check_tensorrt)(target, gpu)
    return tuple(sorted(found, key=lambda target: float(target.compute_capability)))


def _named(name: str, gpu: Gpu | None) -> Target:
    if name == "host":
        if gpu is None:
            raise InputError(
                "target host: no GPU was found here (python -m runtime doctor says why); name a target, "
                f"e.g. --backend tensorrt-rtx --target sm86; known: {', '.join(TARGETS)}"
            )
        known = [target for target in TARGETS.values() if target.compute_capability == gpu.compute_capability]
        return known[0] if known else Target(f"sm{gpu.compute_capability.replace('.', '')}", *_of(gpu))
    if name not in TARGETS:
        raise InputError(f"target {name!r} does not exist; expected host or one of {', '.join(TARGETS)}")
    return TARGETS[name]


def _of(gpu: Gpu) -> tuple[str, str]:
    return gpu.compute_capability, gpu.name


def _check_rtx(target: Target, gpu: Gpu | None) -> None:
    if target.jetson:
        raise InputError(f"target {target.name}: TensorRT-RTX does not run on Jetson; {on_device(target)}")
    if target.compute_capability not in AHEAD_OF_TIME:
        raise InputError(
            f"target {target.name}: TensorRT-RTX builds for compute capability {', '.join(AHEAD_OF_TIME)}, not "
            f"{target.compute_capability}; {on_device(target)}"
        )


def _check_tensorrt(target: Target, gpu: Gpu | None) -> None:
    if gpu is None or gpu.compute_capability != target.compute_capability:
        here = "there is none here" if gpu is None else f"here that is {gpu.name}, {gpu.compute_capability}"
        raise InputError(
            f"target {target.name}: TensorRT times its kernels on the GPU that it builds for ({here}); "
            f"{on_device(target)}"
        )


def on_device(target: Target) -> str:
    return f"copy the bundle to the {target.devices} and run: python -m runtime build BUNDLE --backend tensorrt"
