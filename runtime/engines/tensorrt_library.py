"""TensorRT 10.3 to 11.x and TensorRT-RTX behind one name: features are probed, versions never compared."""

from __future__ import annotations

import functools
import importlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from runtime.errors import EngineError
from runtime.targets import EngineBackend

MODULES: Final = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
UNFUSED, VERSION_COMPATIBLE, HARDWARE_COMPATIBLE = "unfused-attention", "version-compatible", "hardware-compatible"
DTYPES: Final = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
# What the library says when something else is the matter.
TRANSLATIONS: Final = (
    (
        "could not find any implementation",
        "no kernel fitted into the free memory, which is what this message usually means; close other programs, or "
        "build with fewer classes (--most-classes)",
    ),
    (
        "out of memory",
        "the GPU's memory is used up; close other programs, or build with fewer classes (--most-classes)",
    ),
    ("bad_alloc", "the machine's memory is used up; close other programs or add swap"),
    ("no supported gpu", "no GPU of the wanted kind is here; see --target"),
)


@dataclass(frozen=True)
class Library:
    """The imported module, its only logger (it keeps the first one of a process) and the logged errors."""

    backend: EngineBackend
    module: Any
    logger: Any
    errors: list[str]

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    def last_error(self) -> str:
        """The first error since the last call, translated; it is the cause of those that follow."""
        texts, self.errors[:] = list(self.errors), []
        joined = " ".join(texts).lower()
        for words, meaning in TRANSLATIONS:
            if words in joined:
                return f"{meaning} ({_short(texts[0])})"
        return _short(texts[0]) if texts else "the library gave no reason"


def new_runtime(library: Library, options: Sequence[str]) -> Any:
    """What opens engines. A version-compatible one brings its own runtime as code, which must be allowed to run."""
    runtime = library.module.Runtime(library.logger)
    if VERSION_COMPATIBLE in options and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    return runtime


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


@functools.cache
def load_library(backend: EngineBackend) -> Library:
    """Imports the library.

    Raises:
        EngineError: it is not installed, or cannot be loaded.
    """
    try:
        module = importlib.import_module(MODULES[backend])
    except ImportError as error:
        raise EngineError(missing(backend, error)) from None
    errors: list[str] = []

    class Logger(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                errors.append(message)

    return Library(backend, module, Logger(), errors)


def missing(backend: EngineBackend, error: ImportError) -> str:
    """What to install, here."""
    name = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[backend]
    if not isinstance(error, ModuleNotFoundError):
        return f"{name} is installed but cannot be loaded ({_short(str(error))}); run python -m runtime doctor"
    jetson = platform.machine() == "aarch64"
    if backend == "tensorrt-rtx":
        tail = "; it does not run on Jetson: use --backend tensorrt" if jetson else ""
        return f"{name} is not installed; pip install tensorrt-rtx-cu13 (CUDA 12: tensorrt-rtx-cu12){tail}"
    if jetson:
        return (
            f"{name} is not installed for this Python; on Jetson it comes with JetPack: sudo apt install "
            "python3-libnvinfer, and a virtual environment made with --system-site-packages"
        )
    return f"{name} is not installed; pip install tensorrt"
