"""Machines as they are found in the field, from recorded facts and fake files; what the doctor says of each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_tensorrt import device, on_device, one_logger_a_test  # noqa: F401 (fixtures)

from runtime import doctor, facts
from runtime.bundle import Bundle
from runtime.doctor import diagnose
from runtime.engines.tensorrt_library import Library
from runtime.errors import EngineError
from runtime.facts import Facts, collect
from runtime.known_issues import ISSUES, version

ROOT = Path(__file__).parents[2]
CPU = ("AzureExecutionProvider", "CPUExecutionProvider")
LAPTOP = Facts(
    python="3.11.7",
    system="Linux 6.8",
    machine="x86_64",
    packages={"numpy": "2.4.6", "onnxruntime": "1.32.0", "openvino": "2026.4.0"},
    providers=CPU,
    free_memory=12 << 30,
    free_disk=80 << 30,
)
SERVER = LAPTOP.model_copy(
    update={
        "gpu": "NVIDIA H100 80GB HBM3",
        "compute_capability": "9.0",
        "cards": 1,
        "driver": "580.65.06",
        "power": "700.00 W",
        "packages": {"onnxruntime": "1.32.0", "tensorrt": "11.4.0.12", "cuda-core": "1.2.2", "cuda-bindings": "13.5.0"},
    }
)
ORIN = LAPTOP.model_copy(
    update={
        "machine": "aarch64",
        "gpu": "Orin",
        "compute_capability": "8.7",
        "integrated": True,
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "power": "15W",
        "packages": {"onnxruntime": "1.22.0", "tensorrt": "10.3.0", "cuda-core": "1.2.2", "cuda-bindings": "13.5.0"},
    }
)
THOR = ORIN.model_copy(
    update={
        "gpu": "NVIDIA Thor",
        "compute_capability": "11.0",
        "l4t": "38.4.0",
        "jetpack": "7.1",
        "power": "MAXN",
        "packages": {"onnxruntime": "1.24.0", "tensorrt": "10.13.3.9", "cuda-core": "1.2.2", "cuda-bindings": "13.5.0"},
    }
)


def names(machine: Facts, **changes: Any) -> set[str]:
    return {finding.name for finding in diagnose(machine.model_copy(update=changes), None).findings}


def test_healthy_machines() -> None:
    for machine in (LAPTOP, SERVER):
        assert names(machine) == set()
        assert not diagnose(machine, None).broken
    assert names(THOR, packages=THOR.packages | {"tensorrt": "10.16.1"}) == set()
    assert names(ORIN, packages=ORIN.packages | {"tensorrt": "10.16.1"}, power="MAXN_SUPER") == set()


def test_an_orin_with_jetpack_6() -> None:
    assert names(ORIN) == {"DINOv3 on TensorRT 10.3 and 10.4", "saving power"}
    assert not diagnose(ORIN, None).broken  # warnings only


def test_a_thor_with_jetpack_7_1() -> None:
    [finding] = diagnose(THOR, None).findings
    assert finding.reference == "NVIDIA/TensorRT-Edge-LLM#151"
    assert "JetPack 7.2" in finding.mend
    assert names(THOR, compute_capability="8.9") == set()


@pytest.mark.parametrize(
    ("machine", "changes", "name", "broken"),
    [
        (LAPTOP, {"cards": 1}, "driver missing", True),
        (SERVER, {"packages": {"tensorrt": "11.4"}}, "cuda-core missing", True),
        (SERVER, {"packages": {"tensorrt": "11.4", "cuda-core": "1"}}, "cuda-core missing", True),
        (SERVER, {"packages": SERVER.packages | {"onnxruntime-gpu": "1.32.0"}}, "two ONNX Runtimes", True),
        (
            SERVER,
            {"packages": {"onnxruntime-gpu": "1", "cuda-core": "1", "cuda-bindings": "13"}},
            "ONNX Runtime without CUDA",
            True,
        ),
        (
            SERVER,
            {"packages": {"tensorrt": "8.6.1", "cuda-core": "1", "cuda-bindings": "13"}},
            "TensorRT too old",
            True,
        ),
        (
            SERVER,
            {"packages": {"tensorrt": "10.7.0", "cuda-core": "1", "cuda-bindings": "13"}},
            "fused attention of TensorRT 10.7",
            False,
        ),
        (
            SERVER,
            {
                "packages": {"tensorrt": "10.16.1", "cuda-core": "1", "cuda-bindings": "13"},
                "compute_capability": "12.0",
            },
            "fused attention on Blackwell",
            False,
        ),
        (ORIN, {"packages": ORIN.packages | {"tensorrt-rtx-cu12": "1.7"}}, "TensorRT-RTX on Jetson", True),
        (SERVER, {"packages": SERVER.packages | {"tensorrt-rtx-cu13": "1.7"}}, "TensorRT-RTX on this GPU", False),
        (
            SERVER,
            {"packages": SERVER.packages | {"tensorrt-rtx-cu13": "1.7"}, "driver": "570.1"},
            "driver too old for CUDA 13",
            True,
        ),
        (
            SERVER,
            {"packages": {"onnxruntime": "1.32.0", "cuda-core": "1", "cuda-bindings": "13"}},
            "no engine for the GPU",
            False,
        ),
        (LAPTOP, {"free_memory": 1 << 30}, "little memory", False),
        (LAPTOP, {"free_disk": 1 << 30}, "little room", False),
        (LAPTOP, {"broken": {"tensorrt": "libnvinfer.so.10: cannot open"}}, "tensorrt does not load", True),
    ],
)
def test_each_known_issue(machine: Facts, changes: dict[str, Any], name: str, broken: bool) -> None:
    assert name not in names(machine)
    diagnosis = diagnose(machine.model_copy(update=changes), None)
    [finding] = [finding for finding in diagnosis.findings if finding.name == name]
    assert (finding.severity == "broken") is broken
    assert finding.mend


def test_every_issue_can_be_met() -> None:
    """A row of the table that no test above can reach would be dead."""
    met = {"DINOv3 on TensorRT 10.3 and 10.4", "saving power", "fused products on Thor", "bf16 on this GPU"}
    parameters = next(mark for mark in test_each_known_issue.pytestmark if mark.name == "parametrize").args[1]
    assert {issue.name for issue in ISSUES} == met | {case[2] for case in parameters if "does not load" not in case[2]}


def test_versions() -> None:
    assert version("10.13.3.9+cuda13") == (10, 13, 3, 9)
    assert version("") == ()
    assert () < version("8.6") < version("10.3.0") < version("10.3.0.26") < version("11")


# --- bundles


def test_a_sound_bundle(small_bundle: Path) -> None:
    [finding] = diagnose(LAPTOP, small_bundle).findings
    assert (finding.name, finding.severity) == ("random weights", "warning")


@pytest.mark.parametrize(
    ("damage", "trouble"),
    [
        (lambda root: (root / "onnx" / "decoder.fp32.onnx").unlink(), "is missing, expected"),
        (lambda root: (root / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda root: flip(root / "onnx" / "decoder.fp16.onnx.data"), "decoder.fp16.onnx.data was altered: sha256"),
        (shutil.rmtree, "is not a bundle"),
    ],
)
def test_a_damaged_bundle(damage: Callable[[Path], Any], trouble: str, bundle_copy: Path) -> None:
    damage(bundle_copy)
    diagnosis = diagnose(LAPTOP, bundle_copy)
    [finding] = diagnosis.findings
    assert trouble in finding.trouble
    assert finding.mend.startswith(("copy or build the bundle again", "build one with python export/build_engines.py"))
    assert diagnosis.broken


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def test_engines_for_this_gpu_and_others(on_device: tuple[Bundle, Library]) -> None:  # noqa: F811
    root = on_device[0].root
    ampere = SERVER.model_copy(update={"compute_capability": "8.6", "gpu": "NVIDIA Fake"})
    assert {finding.name for finding in diagnose(ampere, root).findings} == {"random weights"}
    wrong = diagnose(SERVER, root)
    stages = [f"engine of {stage.name}" for stage in on_device[0].manifest.stages]
    assert [finding.name for finding in wrong.findings] == ["random weights", *stages]
    assert "was built for compute capability 8.6, NVIDIA H100 80GB HBM3 has 9.0" in wrong.findings[1].trouble
    command = f"run python -m runtime build {root} --backend tensorrt --engine fp16"
    assert {finding.mend for finding in wrong.findings[1:]} == {command}  # of the fp32 text encoder too
    flip_engine = next((root / "engines").rglob("decoder*.engine"))
    flip_engine.write_bytes(b"x")
    assert "engine of decoder" in {finding.name for finding in diagnose(ampere, root).findings}


def test_engines_of_a_graph_that_is_no_more(on_device: tuple[Bundle, Library]) -> None:  # noqa: F811
    root = on_device[0].root
    manifest = json.loads((root / "manifest.json").read_text())
    for engine in manifest["engines"]:
        if engine["key"]["stage"] == "decoder":
            engine["key"]["graph"] = "0" * 64
    (root / "manifest.json").write_text(json.dumps(manifest))
    ampere = SERVER.model_copy(update={"compute_capability": "8.6", "gpu": "NVIDIA Fake"})
    [finding] = [one for one in diagnose(ampere, root).findings if one.severity == "broken"]
    assert finding.trouble.endswith("decoder.fp16.engine was built from another graph")


def test_engines_whose_library_is_not_here(
    on_device: tuple[Bundle, Library],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(backend: str) -> Any:
        raise EngineError("TensorRT is not installed; pip install tensorrt")

    monkeypatch.setattr(doctor, "load_library", missing)
    finding = diagnose(SERVER, on_device[0].root).findings[-1]
    assert (finding.name, finding.severity, finding.mend) == ("tensorrt engines", "warning", "pip install tensorrt")
    assert {finding.name for finding in diagnose(LAPTOP, on_device[0].root).findings} == {"random weights"}


def test_bf16_needs_ampere(edit_manifest: Callable[..., Path], small_bundle: Path) -> None:
    stages = json.loads((small_bundle / "manifest.json").read_text())["stages"]
    stages[1]["precisions"][0]["got"] = "bf16"
    root = edit_manifest(stages=stages)
    turing = SERVER.model_copy(update={"compute_capability": "7.5", "gpu": "Tesla T4"})
    assert [finding.name for finding in diagnose(turing, root).findings] == ["bf16 on this GPU", "random weights"]
    assert names(turing) == set()
    assert [finding.name for finding in diagnose(SERVER, root).findings] == ["random weights"]


# --- collecting


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_a_jetson_from_its_files(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0\n",
            "proc/meminfo": "MemTotal: 30000000 kB\nMemAvailable: 2000000 kB\n",
            "var/lib/dpkg/status": "Package: bash\nVersion: 5.1\n\nPackage: cuda-toolkit-12-6\nStatus: ok\n\n"
            "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2+b77\n\n",
        },
    )

    def run(command: list[str]) -> str:
        assert command == ["nvpmodel", "-q"]
        return "NV Power Mode: 25W\n1\n"

    found = collect(root, run)
    assert (found.l4t, found.jetpack, found.driver, found.power) == ("36.4.3", "6.2", "540.4.0", "25W")
    assert found.free_memory == 2000000 * 1024
    assert found.cuda == "12.6"
    assert {"saving power", "little memory"} <= names(found)


def test_a_server_from_its_files(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\n",
            "sys/bus/pci/devices/0000:17:00.0/vendor": "0x10de\n",
            "sys/bus/pci/devices/0000:17:00.0/class": "0x030200\n",
            "sys/bus/pci/devices/0000:00:1f.0/vendor": "0x8086\n",
            "sys/bus/pci/devices/0000:00:1f.0/class": "0x060100\n",
        },
    )
    found = collect(root, lambda command: "350.00 W, 580.65.06\n" if len(command) > 1 else "| CUDA Version: 13.0  |")
    assert (found.cards, found.driver, found.power, found.l4t) == (1, "580.65.06", "350.00 W", "")
    assert found.cuda == "13.0"
    write(root, {"usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.3"}}'})
    assert collect(root, lambda command: "350.00 W, 580.65.06\n").cuda == "12.6.3"


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.0, GCID", "36.4.0", "6.1"),
        ("# R36 (release), REVISION: 4.4, GCID", "36.4.4", "6.2.1"),
        ("# R38 (release), REVISION: 4.0, GCID", "38.4.0", "7.1"),
        ("# R99 (release), REVISION: 1.0, GCID", "99.1.0", ""),
    ],
)
def test_jetpack_from_its_release_file(release: str, l4t: str, jetpack: str, tmp_path: Path) -> None:
    found = collect(write(tmp_path, {"etc/nv_tegra_release": release}), lambda command: "")
    assert (found.l4t, found.jetpack) == (l4t, jetpack)


def test_nothing_is_there_and_every_tool_hangs(tmp_path: Path) -> None:
    def hangs(command: list[str]) -> str:
        raise subprocess.TimeoutExpired(command, facts.SECONDS)

    found = collect(tmp_path, hangs)
    assert (found.driver, found.power, found.cards, found.free_memory) == ("", "", 0, None)
    assert found.python
    assert found.simd in ("avx512", "avx2", "sse2", "neon")


def test_a_library_that_throws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        if name == "tensorrt":
            raise OSError("libnvinfer.so.10:\n cannot open shared object file")
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(facts.importlib, "import_module", load)
    found = collect(tmp_path, lambda command: "")
    assert found.broken == {"tensorrt": "libnvinfer.so.10: cannot open shared object file"}


# --- the command


def run_doctor(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime", "doctor", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command(small_bundle: Path) -> None:
    result = run_doctor(small_bundle)
    assert "random weights" in result.stderr
    assert "Python, system" in result.stderr
    assert result.stdout == ""
    assert result.returncode == int("broken " in result.stderr.replace(" broken,", ""))


def test_the_command_for_programs(bundle_copy: Path) -> None:
    (bundle_copy / "tokenizer.json").unlink()
    result = run_doctor(bundle_copy, "--json")
    assert result.returncode == 1
    answer = json.loads(result.stdout)
    assert answer["facts"]["packages"]["numpy"]
    assert [finding["name"] for finding in answer["findings"] if finding["name"] == "bundle"] == ["bundle"]
    assert doctor.Diagnosis.model_validate(answer).broken
