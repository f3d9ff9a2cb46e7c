"""TensorRT and TensorRT-RTX engines: opened once, then bound to shapes and addresses at every place they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines.base import Shapes
from runtime.engines.kernel_cache import KernelCache
from runtime.engines.tensorrt_library import Library, new_runtime
from runtime.errors import EngineError
from runtime.manifest import EngineEntry, Profile
from runtime.profiles import accepts


class OpenEngine:
    """A deserialised engine, a `runtime.engines.base.DeviceEngine`.

    Raises:
        EngineError: the library refuses it.
    """

    captures = True

    def __init__(self, library: Library, root: Path, entry: EngineEntry) -> None:
        self.library, self.key, self.stage = library, entry.key, entry.key.stage
        runtime = new_runtime(library, entry.key.options)
        self.engine = runtime.deserialize_cuda_engine((root / entry.path).read_bytes())
        if self.engine is None:  # the library raises nothing
            raise EngineError(f"stage {self.stage}: the engine does not open: {library.last_error()}")
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        output = library.module.TensorIOMode.OUTPUT
        self.outputs = [name for name in names if self.engine.get_tensor_mode(name) == output]
        self._kernels = KernelCache(library, self.engine, entry.file.sha256[:32])
        share = entry.facts.flops.get(entry.key.precision, 1.0)
        self.precision = f"{entry.key.precision}, {share:.0%} of the FLOPs"

    def activation_memory(self) -> int:
        """Bytes that an execution context takes beside the weights."""
        for name in ("device_memory_size_v2", "device_memory_size"):
            if hasattr(self.engine, name):
                return int(getattr(self.engine, name))
        return 0

    def bind(self, shapes: Shapes, stream: int) -> Bound:
        """A context of its own for inputs of these shapes, so that several can run side by side.

        Raises:
            EngineError: the shapes lie outside every profile, or there is no memory for a context.
        """
        profile = profile_of(self.stage, self.key.profiles, shapes)
        context = self._kernels.context()
        if context is None:
            raise EngineError(f"stage {self.stage}: no execution context: {self.library.last_error()}")
        context.set_optimization_profile_async(profile, stream)
        for name, shape in shapes.items():
            context.set_input_shape(name, shape)
        return Bound(self, context)

    def close(self) -> None:
        if self.engine is not None:
            self._kernels.save()
        self.engine = None


class Bound:
    """An execution context whose shapes are set; its addresses may change, its shapes do not."""

    def __init__(self, opened: OpenEngine, context: Any) -> None:
        self._opened, self._context = opened, context
        dtypes = {name: opened.library.module.nptype(opened.engine.get_tensor_dtype(name)) for name in opened.outputs}
        self.outputs = {
            name: (tuple(context.get_tensor_shape(name)), np.dtype(dtypes[name])) for name in opened.outputs
        }

    def address(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            self._context.set_tensor_address(name, address)

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            stage, reason = self._opened.stage, self._opened.library.last_error()
            raise EngineError(f"stage {stage}: the engine failed: {reason}")


def profile_of(stage: str, profiles: tuple[Profile, ...], shapes: Shapes) -> int:
    for i, profile in enumerate(profiles):
        if accepts(profile, shapes):
            return i
    given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    most = {name: largest for name, (_, _, largest) in profiles[-1].shapes.items()}
    raise EngineError(
        f"stage {stage}: {given} lies outside every profile (the largest is {most}); for more classes build again "
        "with --most-classes"
    )
