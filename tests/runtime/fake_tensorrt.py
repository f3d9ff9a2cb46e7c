"""A TensorRT of three generations with the calls that we make; its "engine" is an ONNX graph that ONNX Runtime runs."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from fake_cuda import Stream, alive

COMPATIBLE = b"with a runtime of its own: "
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = Severity

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class Config:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.flags: set[str] = {"TF32"}
        self.profiles: list[Any] = []
        self.said: dict[str, Any] = {}

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.said[pool] = size

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: content + b"+")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> None:
        self.said["cache"] = cache

    def get_timing_cache(self) -> Any:
        return self.said.get("cache")


def fake(version: str, failure: tuple[str, ...] | None = None) -> Any:
    """The module. `failure`: what is logged by a build that then returns None."""
    major = int(version.split(".", maxsplit=1)[0])
    configs: list[Config] = []

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Any:
            assert flags == (2 if major < 11 else 0)
            return SimpleNamespace(num_layers=0, num_inputs=1, get_input=lambda i: SimpleNamespace(shape=(-1, 3)))

        def create_builder_config(self) -> Config:
            configs.append(Config())
            return configs[-1]

        def create_optimization_profile(self) -> Any:
            shapes: dict[str, Any] = {}
            return SimpleNamespace(shapes=shapes, set_shape=lambda name, *bounds: shapes.__setitem__(name, bounds))

        def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
            for text in failure or ():
                self.logger.log(Severity.ERROR, text)
            mark = COMPATIBLE if "VERSION_COMPATIBLE" in config.flags else b""
            return None if failure else mark + bytes(network.graph.encode())

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: Any, logger: ILogger) -> None:
            self.network = network

        def parse_from_file(self, path: str) -> bool:
            self.network.graph = path
            return True

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if plan.startswith(COMPATIBLE) and not self.engine_host_code_allowed:
                self.logger.log(Severity.ERROR, "Host code is not allowed")
                return None
            path = Path(plan.removeprefix(COMPATIBLE).decode(errors="replace"))
            if not path.is_file():
                self.logger.log(Severity.ERROR, "Serialization assertion magicTag failed")
                return None
            return Engine(path)

    flags = {"STRONGLY_TYPED": 1} if major < 11 else {}
    return SimpleNamespace(
        __version__=version,
        ILogger=ILogger,
        Builder=Builder,
        OnnxParser=OnnxParser,
        Runtime=Runtime,
        configs=configs,
        NetworkDefinitionCreationFlag=SimpleNamespace(**flags),
        BuilderFlag=SimpleNamespace(TF32="TF32", VERSION_COMPATIBLE="VERSION_COMPATIBLE"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="DETAILED"),
        LayerInformationFormat=SimpleNamespace(JSON="JSON"),
        TensorIOMode=SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
        nptype=lambda dtype: dtype,
    )


class Engine:
    """Deserialised: the plan is the path of an ONNX graph."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.ins = {value.name: value for value in self.session.get_inputs()}
        self.outs = {value.name: value for value in self.session.get_outputs()}
        self.names = [*self.ins, *self.outs]
        self.num_io_tensors = len(self.names)
        self.device_memory_size_v2 = 1_000_000

    def get_tensor_name(self, i: int) -> str:
        return self.names[i]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self.ins else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> Any:
        return DTYPES[(self.ins | self.outs)[name].type]

    def create_execution_context(self) -> Context:
        return Context(self)

    def create_engine_inspector(self) -> Any:
        layers = '{"Layers": [{"Name": "_gemm_mha_v2"}, {"Name": "conv"}]}'
        return SimpleNamespace(get_engine_information=lambda form: layers)


class Context:
    """Runs when the stream gets there, on what then lies at the addresses."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.addresses, self.profile = engine, {}, {}, -1

    def set_optimization_profile_async(self, profile: int, stream: int) -> None:
        assert stream in Stream.by_handle
        self.profile = profile

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = tuple(shape)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Known before anything has run: here from a run on zeros."""
        zeros = {
            key: np.zeros(self.shapes[key], np.dtype(self.engine.get_tensor_dtype(key))) for key in self.engine.ins
        }
        return tuple(self.engine.session.run([name], zeros)[0].shape)

    def array(self, name: str, shape: tuple[int, ...], addresses: dict[str, int]) -> Any:
        dtype = np.dtype(self.engine.get_tensor_dtype(name))
        size = int(np.prod(shape)) * dtype.itemsize
        assert alive(addresses[name]), f"{name} is freed memory"
        memory = (ctypes.c_uint8 * size).from_address(addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert self.profile >= 0
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def work() -> None:
            inputs = {name: self.array(name, shapes[name], addresses) for name in self.engine.ins}
            found = self.engine.session.run(None, inputs)
            for name, value in zip(self.engine.outs, found, strict=True):
                self.array(name, value.shape, addresses)[...] = value

        Stream.by_handle[stream].enqueue(work)
        return True
