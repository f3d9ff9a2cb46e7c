"""ONNX Runtime's CUDA provider on the fake device: its CPU provider, when the stream gets there."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime
from fake_cuda import Stream, alive

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
OPTIONS = {
    "user_compute_stream",
    "do_copy_in_default_stream",
    "arena_extend_strategy",
    "enable_cuda_graph",
    "gpu_mem_limit",
    "use_tf32",
}

__version__ = onnxruntime.__version__
SessionOptions = onnxruntime.SessionOptions
Bound = dict[str, tuple[Any, tuple[int, ...], int]]


def get_available_providers() -> list[str]:
    return [CUDA, CPU]


def InferenceSession(path: str, options: Any, providers: list[Any], enable_fallback: bool) -> Any:
    assert not enable_fallback
    [(provider, given)] = providers
    session = onnxruntime.InferenceSession(path, options, providers=[CPU])
    return Session(session, given, Path(path)) if provider == CUDA else session


class Binding:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.inputs: Bound = {}
        self.outputs: Bound = {}

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: tuple[int, ...], at: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.inputs[name] = dtype, shape, at

    def bind_output(self, name: str, device: str, number: int, dtype: Any, shape: tuple[int, ...], at: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.outputs[name] = dtype, shape, at


class Session:
    """Graphs belong to a thread and an id, and replay what lay bound when they were captured."""

    opened: ClassVar[list[Session]] = []
    without_cuda: ClassVar[bool] = False  # as where the libraries do not fit
    refuses_graphs: ClassVar[bool] = False
    fails_capture: ClassVar[bool] = False
    fails: ClassVar[bool] = False
    capture: ClassVar[Any] = threading.Lock()

    def __init__(self, session: Any, given: dict[str, str], path: Path) -> None:
        assert given.keys() <= OPTIONS
        assert all(isinstance(value, str) for value in given.values())
        self.session, self.given, self.path = session, given, path
        self.has_graphs = given.get("enable_cuda_graph") == "1"
        if self.has_graphs and Session.refuses_graphs:
            raise RuntimeError("This session cannot use the graph capture feature\nas requested by the user")
        if "user_compute_stream" in given:
            self.stream = Stream.by_handle[int(given["user_compute_stream"])]
            self.stream.is_early = True
            assert not hasattr(self.stream, "broken"), "a stream whose capture failed"
        self.captured: dict[tuple[int, int], Binding] = {}
        self.replays = 0
        Session.opened.append(self)

    def get_providers(self) -> list[str]:
        return [CPU] if Session.without_cuda else [CUDA, CPU]

    def get_outputs(self) -> Any:
        return self.session.get_outputs()

    def run(self, names: list[str], inputs: dict[str, Any]) -> Any:
        return self.session.run(names, inputs)

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        assert binding.session is self
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        if Session.fails:
            raise RuntimeError("CUDA failure 700:\nan illegal memory access was encountered")
        number = int(options.get_run_config_entry("gpu_graph_id"))
        assert number == -1 or self.has_graphs
        key = threading.get_ident(), number
        if number >= 0 and key not in self.captured:
            if Session.fails_capture:
                self.stream.broken = True  # type: ignore[attr-defined]
                raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
            assert Session.capture.acquire(blocking=False), "two captures at once: one's allocations end the other"
            time.sleep(0.01)
            Session.capture.release()
            self.captured[key] = binding
            assert len({thread for thread, _ in self.captured}) == 1, "every thread captures its own graphs"
        elif number >= 0:
            self.replays += 1
            binding = self.captured[key]
        self.stream.enqueue(lambda: self.compute(binding))

    def compute(self, binding: Binding) -> None:
        """With ONNX Runtime's own I/O binding, to the same addresses."""
        real = self.session.io_binding()
        for bound, bind in ((binding.inputs, real.bind_input), (binding.outputs, real.bind_output)):
            for name, (dtype, shape, address) in bound.items():
                assert alive(address), f"{name} is freed memory"
                bind(name, "cpu", 0, dtype, shape, address)
        self.session.run_with_iobinding(real)
