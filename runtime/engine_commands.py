"""`python -m runtime build`: engines for a bundle, on the device that runs them; PyTorch is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import get_args

from rich.box import SIMPLE
from rich.table import Table

from runtime.bundle import Bundle
from runtime.cli import console
from runtime.engine_cache import build_engines, prune
from runtime.engine_gate import Score, check_engines
from runtime.engines.base import Array
from runtime.engines.tensorrt_library import HARDWARE_COMPATIBLE, VERSION_COMPATIBLE, Library, load_library
from runtime.errors import EngineError, InputError, ParityError
from runtime.gpu import find_gpu
from runtime.manifest import EngineEntry, Precision
from runtime.probe import probe_classes
from runtime.targets import EngineBackend, resolve


def build_for(
    bundle: Bundle,
    backend: EngineBackend,
    targets: Sequence[str],
    asked: Precision,
    options: Sequence[str],
    most_classes: int,
    photo: Array,
    announce: Callable[[str], None],
    score: Score | None = None,
    search: Callable[[str], str] | None = None,
) -> Bundle:
    """Builds the engines of every stage for the named targets; where they can run, they must pass the parity gate.

    Args:
        score: As for `check_engines`.
        search: Names the first wrong tensor of a stage.

    Raises:
        ParityError: an engine differs too much from ONNX Runtime in fp32.
        InputError: a target or option that this backend cannot build here.
        EngineError: the library is missing, or a build failed.
    """
    gpu = find_gpu()
    found = resolve(backend, targets, gpu)
    if backend == "tensorrt-rtx" and HARDWARE_COMPATIBLE in options:
        raise InputError("--hardware-compatible is TensorRT's; for TensorRT-RTX name several targets")
    if backend == "tensorrt-rtx" and VERSION_COMPATIBLE in options and gpu is None:
        raise InputError("--version-compatible needs a GPU with TensorRT-RTX; build on the device")
    bundle = build_engines(bundle, load_library(backend), found, asked, options, most_classes, announce)
    if gpu is not None and gpu.compute_capability in {target.compute_capability for target in found}:
        classes = probe_classes(bundle.manifest.vocabulary)
        try:
            return check_engines(bundle, backend, asked, photo, classes, announce, score)
        except ParityError as error:
            if not error.stage:
                raise
            hint = f"python export/engine_search.py {bundle.root} {error.stage} names the tensor"
            raise ParityError(f"{error}; {search(error.stage) if search else hint}", error.stage) from None
    announce("no engine was run: the parity gate needs a GPU of that kind")
    return bundle


def prune_bundle(bundle: Bundle) -> None:
    _, removed = prune(bundle, installed_libraries())
    for line in removed:
        console.print(f"removed {line}", soft_wrap=True)
    console.print(f"{len(removed)} files removed from {bundle.root}", soft_wrap=True)


def installed_libraries() -> list[Library]:
    found = []
    for backend in get_args(EngineBackend):
        try:
            found.append(load_library(backend))
        except EngineError:
            continue
    return found


def engine_table(engines: Iterable[EngineEntry]) -> Table:
    """What each engine really holds, and what it took to build."""
    table = Table(
        "engine", "for", "type", "layers", "FLOPs", "attention", "s", "peak MB", "plan MB", "made by", box=SIMPLE
    )
    for entry in engines:
        key, facts = entry.key, entry.facts
        fused = "" if facts.fused_attention is None else f", {facts.fused_attention} fused"
        table.add_row(
            key.stage,
            ", ".join(key.targets),
            key.precision,
            str(facts.layers),
            ", ".join(f"{share:.1%} {name}" for name, share in facts.flops.items()) or "none",
            f"{facts.attention}{fused}",
            f"{facts.seconds:.1f}",
            f"{facts.peak_memory / 1e6:.0f}",
            f"{entry.file.size / 1e6:.1f}",
            " ".join((key.backend, key.version, *key.options)),
        )
    return table


def report(engines: Iterable[EngineEntry], where: Path) -> None:
    entries = list(engines)
    console.print(engine_table(entries))
    unfused = [entry.key.stage for entry in entries if entry.facts.attention and entry.facts.fused_attention == 0]
    if unfused:
        console.print(f"warning: no fused attention in {', '.join(unfused)}: expect slow engines", style="yellow")
    console.print(f"{len(entries)} engines in {where}", soft_wrap=True)
