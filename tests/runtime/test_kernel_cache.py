"""Kernels compiled at run time are kept for the next process, where the library can do that."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.engines.kernel_cache import KernelCache
from runtime.engines.tensorrt_library import Library


class Cache:
    """Accepts its own kind."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"rtx"):
            return False
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content


class Rtx:
    """An engine of TensorRT-RTX that compiles when a context is made."""

    def create_runtime_config(self) -> Any:
        self.config = SimpleNamespace(create_runtime_cache=Cache, set_runtime_cache=self.keep)
        return self.config

    def keep(self, cache: Cache) -> None:
        self.cache = cache

    def create_execution_context(self, config: Any) -> str:
        assert config is self.config
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        compiled = "known" if self.cache.content else "compiled"
        self.cache.content = b"rtx kernels"
        return compiled


RTX = Library(
    "tensorrt-rtx",
    SimpleNamespace(DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager")),
    logger=None,
    errors=[],
)
TENSORRT = Library("tensorrt", SimpleNamespace(), logger=None, errors=[])


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dinov3seg" / "kernels"


def run(name: str) -> str:
    kernels = KernelCache(RTX, Rtx(), name)
    made: str = kernels.context()
    kernels.save()
    return made


def test_the_next_process_finds_them(folder: Path) -> None:
    assert [run("a"), run("a"), run("b")] == ["compiled", "known", "compiled"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "b.bin"]


def test_what_the_library_refuses_is_compiled_again(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"of another driver")
    assert run("a") == "compiled"
    assert (folder / "a.bin").read_bytes() == b"rtx kernels"


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_bytes(b"")
    with pytest.warns(UserWarning, match="compiled kernels are not kept, the next start is slow again"):
        assert run("a") == "compiled"


@pytest.mark.parametrize("configures", [False, True])
def test_tensorrt_keeps_nothing(configures: bool, folder: Path) -> None:
    """Before 10.13 it had no runtime configuration either."""
    engine = SimpleNamespace(create_execution_context=lambda *config: ("context", *config))
    if configures:
        engine.create_runtime_config = lambda: "config"
    kernels = KernelCache(TENSORRT, engine, "a")
    assert kernels.context() == (("context", "config") if configures else ("context",))
    kernels.save()
    assert not folder.exists()
