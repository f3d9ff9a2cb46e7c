"""Kernels that TensorRT-RTX compiled for this GPU, kept for the next process. TensorRT compiles none at run time."""

from __future__ import annotations

import warnings
from typing import Any

from runtime.engines.tensorrt_library import Library
from runtime.files import atomic_file, cache_dir


class KernelCache:
    """Execution contexts that share what was compiled.

    The library itself refuses what another version, GPU or driver left.

    Args:
        name: Of the engine's content.
    """

    def __init__(self, library: Library, engine: Any, name: str) -> None:
        self._engine = engine
        self._cache: Any = None
        self._known = b""
        folder = cache_dir("kernels")
        self._path = folder / f"{name}.bin" if folder else None
        makes = hasattr(engine, "create_runtime_config")
        self._config = self._configure(library, engine.create_runtime_config()) if makes else None

    def _configure(self, library: Library, config: Any) -> Any:
        strategy = getattr(library.module, "DynamicShapesKernelSpecializationStrategy", None)
        if strategy is not None:  # not in the background, where a capture would not find them
            config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
        if hasattr(config, "create_runtime_cache"):
            self._cache = config.create_runtime_cache()
            if self._path and self._path.is_file():
                self._known = self._path.read_bytes()
                self._cache.deserialize(self._known)
            config.set_runtime_cache(self._cache)
        return config

    def context(self) -> Any:
        """A new execution context, or None: the library raises nothing."""
        if self._config is None:
            return self._engine.create_execution_context()
        return self._engine.create_execution_context(self._config)

    def save(self) -> None:
        """If something was compiled that the file does not hold."""
        if self._cache is None or self._path is None:
            return
        content = bytes(memoryview(self._cache.serialize()))
        if content == self._known:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            warnings.warn(f"compiled kernels are not kept, the next start is slow again: {error}", stacklevel=2)
