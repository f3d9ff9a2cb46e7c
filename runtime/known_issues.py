"""Combinations that are known not to work, as a table: when each applies, what goes wrong, what mends it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from runtime.facts import Facts
from runtime.manifest import Manifest
from runtime.targets import AHEAD_OF_TIME

Severity = Literal["broken", "warning"]
GIB = 1 << 30


@dataclass(frozen=True)
class KnownIssue:
    """
    Attributes:
        reference: The public issue, as owner/repository#number; "" where the reason is in the text.
        concerns: Which bundles; None: the machine alone is in trouble.
    """

    name: str
    severity: Severity
    applies: Callable[[Facts], bool]
    trouble: str
    mend: str
    reference: str = ""
    concerns: Callable[[Manifest], bool] | None = None

    def met(self, facts: Facts, manifest: Manifest | None) -> bool:
        return self.applies(facts) and (self.concerns is None or (manifest is not None and self.concerns(manifest)))


def version(text: str) -> tuple[int, ...]:
    """The leading numbers: "10.13.3.9" -> (10, 13, 3, 9); () for none, which is below everything."""
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:4])


def tensorrt(facts: Facts) -> tuple[int, ...]:
    return version(facts.packages.get("tensorrt", ""))


def rtx(facts: Facts) -> str:
    return next((name for name in facts.packages if name.startswith("tensorrt-rtx")), "")


def jetson(facts: Facts) -> bool:
    return bool(facts.l4t)


def has_bf16(manifest: Manifest) -> bool:
    return any(entry.got == "bf16" for stage in manifest.stages for entry in stage.precisions)


ISSUES = (
    KnownIssue(
        "driver missing",
        "broken",
        lambda f: f.cards > 0 and not f.driver and not f.gpu,
        "an NVIDIA card is in this machine, but its driver does not run",
        "install NVIDIA's driver, restart, and look at the output of nvidia-smi",
    ),
    KnownIssue(
        "cuda-core missing",
        "broken",
        lambda f: bool(f.driver or jetson(f)) and not {"cuda-core", "cuda-bindings"} <= f.packages.keys(),
        "cuda-core or cuda-bindings is not installed: no GPU backend can run",
        "pip install cuda-core cuda-bindings",
    ),
    KnownIssue(
        "two ONNX Runtimes",
        "broken",
        lambda f: {"onnxruntime", "onnxruntime-gpu"} <= set(f.packages) and bool(f.gpu or f.driver),
        "onnxruntime and onnxruntime-gpu overwrite each other's files: the CUDA provider is lost",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
        "microsoft/onnxruntime#26996",
    ),
    KnownIssue(
        "ONNX Runtime without CUDA",
        "broken",
        lambda f: "onnxruntime-gpu" in f.packages and "CUDAExecutionProvider" not in f.providers and bool(f.gpu),
        "onnxruntime-gpu is installed, but has no CUDA provider",
        "pip install --force-reinstall onnxruntime-gpu, and the CUDA and cuDNN versions that it names",
        "microsoft/onnxruntime#26996",
    ),
    KnownIssue(
        "TensorRT too old",
        "broken",
        lambda f: () < tensorrt(f) < (10, 3),
        "engines are strongly typed graphs, which this version does not build",
        "pip install 'tensorrt>=10.3'; on Jetson: JetPack 6.1 or later",
    ),
    KnownIssue(
        "DINOv3 on TensorRT 10.3 and 10.4",
        "warning",
        lambda f: (10, 3) <= tensorrt(f) < (10, 5),
        "engines of DINOv3 from other exporters were wrong here; ours carries RoPE as tables, but the gate must say so",
        "build on this device, which runs the parity gate: python -m runtime build BUNDLE --backend tensorrt",
        "NVIDIA/TensorRT#4742",
    ),
    KnownIssue(
        "fused attention of TensorRT 10.7",
        "warning",
        lambda f: tensorrt(f)[:2] == (10, 7),
        "fused attention gave wrong results on L4",
        "if the parity gate fails: python -m runtime build BUNDLE --backend tensorrt --unfused-attention",
        "NVIDIA/TensorRT#4333",
    ),
    KnownIssue(
        "fused attention on Blackwell",
        "warning",
        lambda f: f.compute_capability == "12.0" and (10,) <= tensorrt(f) < (11,),
        "fused attention of vision transformers gave wrong results in fp16 and bf16, without a message",
        "if the parity gate fails: python -m runtime build BUNDLE --backend tensorrt --unfused-attention",
        "NVIDIA/TensorRT#4837",
    ),
    KnownIssue(
        "bf16 on this GPU",
        "broken",
        lambda f: () < version(f.compute_capability) < (8, 0),
        "stages of this bundle are in bf16, which GPUs compute from compute capability 8.0 on",
        "python -m runtime build BUNDLE --backend tensorrt --engine fp32",
        concerns=has_bf16,
    ),
    KnownIssue(
        "fused products on Thor",
        "warning",
        lambda f: f.compute_capability == "11.0" and (10, 13) <= tensorrt(f) < (10, 15),
        "projections that share an input are miscompiled at batch 1",
        "update to JetPack 7.2, or build with the variable __LUNOWUD=-peep:fc_h_fusion=off",
        "NVIDIA/TensorRT-Edge-LLM#151",
    ),
    KnownIssue(
        "TensorRT-RTX on Jetson",
        "broken",
        lambda f: jetson(f) and bool(rtx(f)),
        "TensorRT-RTX does not run on Jetson",
        "pip uninstall tensorrt-rtx-cu13 tensorrt-rtx-cu12; use --backend tensorrt, which JetPack brings",
    ),
    KnownIssue(
        "TensorRT-RTX on this GPU",
        "warning",
        lambda f: bool(rtx(f)) and bool(f.compute_capability) and f.compute_capability not in AHEAD_OF_TIME,
        f"TensorRT-RTX builds for compute capability {', '.join(AHEAD_OF_TIME)} only",
        "pip install tensorrt, and --backend tensorrt",
    ),
    KnownIssue(
        "driver too old for CUDA 13",
        "broken",
        lambda f: rtx(f) == "tensorrt-rtx-cu13" and () < version(f.driver) < (580,),
        "libraries for CUDA 13 need driver 580 or later",
        "update the driver, or pip uninstall tensorrt-rtx-cu13 && pip install tensorrt-rtx-cu12",
    ),
    KnownIssue(
        "no engine for the GPU",
        "warning",
        lambda f: (
            bool(f.gpu)
            and not tensorrt(f)
            and (not rtx(f) or f.compute_capability not in AHEAD_OF_TIME)
            and "CUDAExecutionProvider" not in f.providers
        ),
        "a GPU is here, but no library that runs engines on it",
        "pip install tensorrt; on Jetson: sudo apt install python3-libnvinfer",
    ),
    KnownIssue(
        "saving power",
        "warning",
        lambda f: jetson(f) and bool(re.fullmatch(r"(MODE_)?\d+W.*", f.power)),
        "a power mode limits the clocks: measured times are those of this mode",
        "for full speed: sudo nvpmodel -m 0 && sudo jetson_clocks",
    ),
    KnownIssue(
        "little memory",
        "warning",
        lambda f: f.free_memory is not None and f.free_memory < 3 * GIB,
        "less than 3 GiB of memory are free; a full-size stage needs about as much while it is built",
        "close other programs, or add swap",
    ),
    KnownIssue(
        "little room",
        "warning",
        lambda f: f.free_disk is not None and f.free_disk < 5 * GIB,
        "less than 5 GiB of disk are free; a full-size bundle with engines takes about 8",
        "make room, or remove old engines: python -m runtime build BUNDLE --prune",
    ),
)
