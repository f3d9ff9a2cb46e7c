"""One contestant in a clean process of its own: what it costs to start, and how much memory it needs.

Not for the command line: `measure_alone` starts this file, the task comes over stdin, the answer goes into a file.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

import runtime.errors
from benchmarks.contestants import Name, Task, open_contestant, open_embedder
from benchmarks.gpu_state import used_memory_mb
from benchmarks.machine import peak_memory_mb
from runtime.engines import MODULES
from runtime.errors import Dinov3SegError, EngineError

WARM_FRAMES = 5


class Alone(BaseModel):
    """Milliseconds and MiB of one contestant that had a process to itself.

    Attributes:
        imports_ms: Of the runtime and the engine library, or torch.
        load_ms: Bundle, checksums and engines; for torch, the modules and their weights.
        text_ms: All class names through the text encoder, which is opened for it; nothing was cached.
        first_frame: By stage. Where frames are captured or compiled, the first one pays for it.
        warm_ms: End to end, after the warm-up: shows whether the interleaved timings were disturbed.
        start_mb, loaded_mb, peak_mb: Peak resident size after the imports, the load, and the last frame.
        gpu_mb: What the contestant held of the GPU's memory after the last frame, its context included; None on a CPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    contestant: Name
    imports_ms: float
    load_ms: float
    text_ms: float
    first_frame: dict[str, float]
    warm_ms: tuple[float, ...]
    start_mb: float
    loaded_mb: float
    peak_mb: float
    gpu_mb: float | None = None


class Failure(BaseModel):
    kind: str
    message: str


def measure_alone(name: Name, task: Task) -> Alone:
    """Starts the process and waits for it. An interrupt ends it at once.

    Raises:
        Dinov3SegError: what the contestant raised there, or EngineError if the process died.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        # In a session of its own: Ctrl-C reaches this process only, which then ends the other.
        done = subprocess.run(
            [sys.executable, __file__, name, str(answer)],
            input=task.model_dump_json(),
            text=True,
            capture_output=True,
            start_new_session=True,
        )
        if done.returncode == 0:
            return Alone.model_validate_json(answer.read_text())
        if answer.exists():
            failure = Failure.model_validate_json(answer.read_text())
            raise getattr(runtime.errors, failure.kind)(failure.message)
    last = (done.stderr.strip().splitlines() or ["no message; out of memory?"])[-1]
    raise EngineError(f"the process that measures {name} ended with code {done.returncode}: {last}")


def measure(name: Name, task: Task) -> Alone:
    photo = np.load(task.photo)
    before = used_memory_mb() if task.on_gpu else None
    watch = StopWatch()
    importlib.import_module(MODULES.get(task.backend, task.backend) if name == "engine" else "torch")
    importlib.import_module("runtime.segmenter")
    imports_ms, start_mb = watch.lap(), peak_memory_mb()
    with open_contestant(name, task) as segmenter:
        load_ms, loaded_mb = watch.lap(), peak_memory_mb()
        open_embedder(name, task).embed(task.classes)
        text_ms = watch.lap()
        segmenter.set_classes(list(task.classes))
        first = segmenter(photo, scores=False).timings
        for _ in range(task.warmup):
            segmenter(photo, scores=False)
        warm = [segmenter(photo, scores=False).timings["total"] for _ in range(min(task.frames, WARM_FRAMES))]
        after = used_memory_mb() if task.on_gpu else None
        return Alone(
            contestant=name,
            imports_ms=imports_ms,
            load_ms=load_ms,
            text_ms=text_ms,
            first_frame=first,
            warm_ms=tuple(warm),
            start_mb=start_mb,
            loaded_mb=loaded_mb,
            peak_mb=peak_memory_mb(),
            gpu_mb=None if before is None or after is None else after - before,
        )


class StopWatch:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Milliseconds since the last lap."""
        now = time.perf_counter()
        elapsed, self._last = (now - self._last) * 1e3, now
        return elapsed


def main(name: Name, answer: Path) -> int:
    try:
        result: BaseModel = measure(name, Task.model_validate_json(sys.stdin.read()))
    except Dinov3SegError as error:
        result = Failure(kind=type(error).__name__, message=str(error))
    answer.write_text(result.model_dump_json())
    return 0 if isinstance(result, Alone) else 1


if __name__ == "__main__":
    sys.exit(main(TypeAdapter(Name).validate_python(sys.argv[1]), Path(sys.argv[2])))
