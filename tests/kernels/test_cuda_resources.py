"""What the compiler made of the CUDA kernels: registers and spills, as ptxas reports them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "kernels/cuda").glob("*.cu"))
ARCHITECTURES = ["80", "90"]
# Registers a thread. All blocks have 256 threads but preprocess's two, 128: of 65,536 registers, 128 a thread
# leave room for two blocks at least.
MOST = {"preprocess_kernel": 128, "antialias_kernel": 64, "tokens_kernel": 64, "channels_first_kernel": 128}
MOST |= {"direct_kernel": 128, "pruned_kernel": 128}
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
NVCC = shutil.which("nvcc")


def resources(source: Path, architectures: list[str], target: Path) -> dict[tuple[str, str], dict[str, str]]:
    flags = ["-std=c++17", "-O3", "--fmad=false", "-Xptxas", "-v", f"-I{ROOT / 'kernels/include'}"]
    flags += [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    assert NVCC
    result = subprocess.run([NVCC, *flags, "-c", source, "-o", target], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr, result.stderr
    found = {}
    for text in re.split(r"(?=Compiling entry function)", result.stderr):
        if entry := ENTRY.search(text):
            architecture = re.search(r"for 'sm_(\d+)'", text)
            assert architecture
            found[entry["name"], architecture[1]] = entry.groupdict()
    return found


def check(source: Path, architectures: list[str], target: Path) -> None:
    found = resources(source, architectures, target)
    assert {architecture for _, architecture in found} == set(architectures)
    for (name, architecture), used in found.items():
        kernel = next(kernel for kernel in MOST if kernel in name)
        print(f"sm_{architecture} {kernel:22} {used['registers']:>3} registers, {used['stores']} bytes spilled  {name}")
        assert (used["stores"], used["loads"], used["stack"]) == ("0", "0", "0"), f"{name} for sm_{architecture} spills"
        assert int(used["registers"]) <= MOST[kernel], f"{name} for sm_{architecture}"


@pytest.mark.skipif(not NVCC, reason="no nvcc here")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_spills_and_few_registers(source, tmp_path):
    check(source, ARCHITECTURES, tmp_path / "kernel.o")


@pytest.mark.slow
@pytest.mark.skipif(not NVCC, reason="no nvcc here")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_spills_on_any_architecture(source, tmp_path):
    assert NVCC
    known = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    cmake = re.search(r"set\(wanted ([\d ]+)\)", (ROOT / "CMakeLists.txt").read_text())
    assert cmake
    check(source, [name for name in cmake[1].split() if f"compute_{name}\n" in known], tmp_path / "kernel.o")
