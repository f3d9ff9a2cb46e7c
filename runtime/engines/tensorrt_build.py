"""Builds one TensorRT engine, in a process of its own: `python -m runtime.engines.tensorrt_build < job.json`.

The process gives its memory back, its peak can be read, and it can be stopped in the middle of a C++ call.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from runtime.engines.tensorrt_library import (
    HARDWARE_COMPATIBLE,
    UNFUSED,
    VERSION_COMPATIBLE,
    Library,
    load_library,
    new_runtime,
)
from runtime.engines.tensorrt_network import fused_attention, read_back, unfuse_attention
from runtime.errors import Dinov3SegError, EngineError
from runtime.gpu import find_gpu
from runtime.manifest import EngineFacts, EngineKey
from runtime.targets import AHEAD_OF_TIME

LEAST_SHARE = 0.5  # of the FLOPs that must be in the precision that the engine is named after


class Job(BaseModel):
    """`graph` is read, `plan` is written; `timing_cache` is read and written where the library times kernels."""

    key: EngineKey
    graph: Path
    plan: Path
    timing_cache: Path | None = None


class Outcome(BaseModel):
    facts: EngineFacts | None = None
    error: str = ""


def build_engine(job: Job) -> EngineFacts:
    """Builds in a child process. An interrupted or killed build leaves `job.plan` at most half written.

    Raises:
        EngineError: the graph is refused, the build fails, the process is killed, or the disk is full.
    """
    command = [sys.executable, "-m", "runtime.engines.tensorrt_build"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True) as process:
        try:
            answer, _ = process.communicate(job.model_dump_json())
        except BaseException:  # Ctrl-C too: a C++ call does not hear it
            process.kill()
            process.wait()
            raise
    stage = job.key.stage
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise EngineError(
            f"stage {stage}: the build was killed by {name}; if nobody did that, the machine's memory is used up: "
            "close other programs or add swap, and run the command again: finished stages are kept"
        )
    try:
        outcome = Outcome.model_validate_json(answer)
    except ValidationError:
        raise EngineError(f"stage {stage}: the build ended with code {process.returncode} and no answer") from None
    if outcome.facts is None:
        raise EngineError(f"stage {stage}: {outcome.error}")
    return outcome.facts


def main() -> int:
    """The child: a job on standard input, its outcome as JSON on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends this process
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    text = sys.stdin.read()
    if not text:  # the parent ended before it had said what to build
        return 1
    job = Job.model_validate_json(text)
    try:
        outcome = Outcome(facts=build(job, load_library(job.key.backend)))
    except (Dinov3SegError, OSError, MemoryError) as error:
        outcome = Outcome(error=str(error) or type(error).__name__)
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        print(outcome.model_dump_json(), flush=True)
    return 0 if outcome.facts else 1


def end_with_parent(parent: int) -> None:
    """A parent that was killed cannot end this process, which would go on for minutes with gigabytes."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def build(job: Job, library: Library) -> EngineFacts:
    """Parses, reads back, builds and writes the plan."""
    start = time.perf_counter()
    trt = library.module
    builder = trt.Builder(library.logger)
    network = builder.create_network(creation_flags(trt))
    parse(library, network, job.graph)
    if UNFUSED in job.key.options:
        unfuse_attention(trt, network)
    found = read_back(trt, network)
    check_precision(job.key.precision, found.flops)
    config = configured(library, builder, network, job)
    plan = builder.build_serialized_network(network, config)
    if plan is None:  # the library raises nothing
        raise EngineError(f"{name_of(job.key)} could not build the engine: {library.last_error()}")
    write_plan(job.plan, plan)
    save_timing_cache(config, job.timing_cache)
    return EngineFacts(
        layers=found.layers,
        flops=found.flops,
        attention=found.attention,
        fused_attention=inspect(library, plan, job.key.options),
        seconds=time.perf_counter() - start,
        peak_memory=peak_memory(),
    )


def peak_memory() -> int:
    """Bytes. `getrusage` would count the parent's, which the child has until it starts its own program."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def name_of(key: EngineKey) -> str:
    return {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[key.backend] + f" {key.version}"


def creation_flags(trt: Any) -> int:
    """Strongly typed: the types of the graph hold. Since TensorRT 11 there is nothing else, and no flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def parse(library: Library, network: Any, graph: Path) -> None:
    """Raises EngineError naming the node, which carries the path of its torch module."""
    parser = library.module.OnnxParser(network, library.logger)
    if parser.parse_from_file(str(graph)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not errors:
        raise EngineError(f"{graph.name} could not be parsed: {library.last_error()}")
    first = errors[0]
    operator = first.node_operator() if hasattr(first, "node_operator") else "node"
    name = first.node_name() if hasattr(first, "node_name") else str(first.node())
    raise EngineError(
        f"{graph.name} could not be parsed: {operator} {name}: {' '.join(first.desc().split())[:200]}; "
        "report this graph, or update the library"
    )


def check_precision(wanted: str, shares: dict[str, float]) -> None:
    """Raises EngineError where the parsed network computes mostly in another type than was asked for."""
    if shares and shares.get(wanted, 0.0) < LEAST_SHARE:
        found = ", ".join(f"{share:.0%} {name}" for name, share in shares.items())
        raise EngineError(
            f"{wanted} was asked for, the network computes {found} of its FLOPs; build the bundle again with "
            f"python export/build_engines.py --engine {wanted}"
        )


def configured(library: Library, builder: Any, network: Any, job: Job) -> Any:
    """The builder's configuration: profiles, targets, memory, cache and switches."""
    trt, key = library.module, job.key
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
    if hasattr(trt, "ProfilingVerbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names and types of the kernels can be read
    dynamic = any(-1 in network.get_input(i).shape for i in range(network.num_inputs))
    for shapes in (profile.shapes for profile in key.profiles if dynamic):
        profile = builder.create_optimization_profile()
        for name, (low, tuned, high) in shapes.items():
            profile.set_shape(name, low, tuned, high)
        config.add_optimization_profile(profile)
    if hasattr(config, "set_compute_capability"):
        set_targets(trt, config, key)
    set_workspace(trt, config)
    if VERSION_COMPATIBLE in key.options:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if HARDWARE_COMPATIBLE in key.options:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if job.timing_cache is not None and key.backend == "tensorrt":
        known = job.timing_cache.read_bytes() if job.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    return config


def set_targets(trt: Any, config: Any, key: EngineKey) -> None:
    wanted = [capability for capability in key.targets if capability in AHEAD_OF_TIME]
    config.num_compute_capabilities = len(wanted)
    for i, capability in enumerate(wanted):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), i)


def set_workspace(trt: Any, config: Any) -> None:
    """At most half of what is free: on Jetson the rest of the machine lives in the same memory."""
    if find_gpu() is not None:
        from runtime.gpu import free_memory

        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, free_memory() // 2)


def write_plan(path: Path, plan: Any) -> None:
    """Raises EngineError where the disk is full."""
    data = memoryview(plan)
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
    except OSError as error:
        raise EngineError(
            f"the plan of {data.nbytes / 1e6:.0f} MB cannot be written to {path.parent} ({error.strerror}); make room "
            "there and run the command again: finished stages are kept"
        ) from None


def save_timing_cache(config: Any, path: Path | None) -> None:
    cache = config.get_timing_cache() if path is not None and hasattr(config, "get_timing_cache") else None
    if cache and path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(memoryview(cache.serialize()))


def inspect(library: Library, plan: Any, options: Sequence[str]) -> int | None:
    """Fused attention kernels of the finished engine; None without a GPU, where an engine cannot be opened."""
    if find_gpu() is None:
        return None
    trt = library.module
    engine = new_runtime(library, options).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"the engine does not open on this GPU: {library.last_error()}")
    inspected = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return fused_attention(inspected)


if __name__ == "__main__":
    sys.exit(main())
