"""Who may import whom, checked on the source; and the runtime in an environment without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("runtime", "export", "kernels", "benchmarks")
SOURCES = sorted(
    path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in {".py", ".cpp", ".cu", ".hpp"}
)
FORBIDDEN = {
    "runtime": {"torch", "torchvision", "export", "onnx", "onnxscript", "benchmarks", "safetensors"},
    "kernels": {"torch", "torchvision", "export", "runtime", "benchmarks"},
    "export": {"torchvision"},
    "benchmarks": {"torchvision"},
    "tests": {"torchvision"},
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, in functions too, and by name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found |= {str(getattr(argument, "value", "")).partition(".")[0] for argument in node.args}
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_forbidden_imports(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = {name_of(path): names for path in files if (names := imported(path) & FORBIDDEN[room])}
    assert wrong == {}


def test_imports_are_found_wherever_they_hide(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "import torch.nn as a\nfrom export.x import b\nfrom . import c\n"
        "def f():\n    from onnx import d\n    importlib.import_module('torchvision.ops')\n"
    )
    assert imported(file) == {"torch", "export", "onnx", "torchvision"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_runtime_imports_where_torch_and_the_exporter_are_not() -> None:
    """Every module, but the engine adapters, which need their library."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "runtime").rglob("*.py"))
        if path.parent.name != "engines" or path.name in {"__init__.py", "base.py"}
    ]
    assert {"runtime", "runtime.segmenter", "runtime.__main__", "runtime.engines"} <= set(modules)
    blocked = ("torch", "torchvision", "export", "onnx", "onnxscript", "safetensors", "onnxruntime", "openvino")
    code = f"import sys, importlib\nsys.modules.update(dict.fromkeys({blocked!r}))\n" + "".join(
        f"importlib.import_module({module!r})\n" for module in modules
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_test_modules_have_unique_names() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert len(names) == len(set(names))
