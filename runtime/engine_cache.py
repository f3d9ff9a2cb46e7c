"""The engines of a bundle: caches of its graphs for one kind of GPU, rebuilt when anything they depend on changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.bundle import Bundle, sha256, write_manifest
from runtime.engines.tensorrt_build import Job, build_engine
from runtime.engines.tensorrt_library import HARDWARE_COMPATIBLE, VERSION_COMPATIBLE, Library
from runtime.errors import EngineError
from runtime.files import atomic_file, cache_dir
from runtime.gpu import Gpu
from runtime.manifest import EngineEntry, EngineKey, FileEntry, Precision, StageEntry
from runtime.profiles import MOST_CLASSES, stage_profiles
from runtime.targets import AHEAD_OF_TIME, EngineBackend, Target

FOLDER = "engines"
LEAST_COMPATIBLE = 8.0  # hardware-compatible engines run from Ampere on


def build_engines(
    bundle: Bundle,
    library: Library,
    targets: Sequence[Target],
    asked: Precision,
    options: Sequence[str] = (),
    most_classes: int = MOST_CLASSES,
    announce: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """Builds what is missing or stale, stage by stage; each finished one is in the manifest before the next begins.

    Args:
        asked: The precision of the bundle's graphs to build from; a stage has what this became.

    Raises:
        EngineError: a stage could not be built; those before it are kept.
        BundleError: the bundle has no graph in this precision.
    """
    folder = f"{FOLDER}/{library.backend}-{'-'.join(target.name for target in targets)}"
    stages = bundle.manifest.stages
    keys = [engine_key(bundle, stage, library, targets, asked, options, most_classes) for stage in stages]
    for stage, key in zip(stages, keys, strict=True):
        path = f"{folder}/{stage.name}.{key.precision}.engine"
        before = next((entry for entry in bundle.manifest.engines if entry.path == path), None)
        if before is not None and before.key == key and intact(bundle, before):
            announce(f"{stage.name}: the engine is up to date")
            continue
        last = f" (last time {before.facts.seconds:.0f} s)" if before is not None else ""
        announce(f"{stage.name}: {library.backend} for {', '.join(key.targets)}{last}")
        bundle = _build(bundle, key, bundle.onnx(stage.name, asked), path)
    return bundle


def engine_key(
    bundle: Bundle,
    stage: StageEntry,
    library: Library,
    targets: Sequence[Target],
    asked: Precision,
    options: Sequence[str],
    most_classes: int,
) -> EngineKey:
    return EngineKey(
        stage=stage.name,
        backend=library.backend,
        precision="fp32" if asked == "fp32" else stage.typed(asked),
        graph=graph_hash(bundle, stage, asked),
        profiles=stage_profiles(bundle.manifest.pipeline, stage, most_classes),
        version=library.version,
        targets=tuple(target.compute_capability for target in targets),
        options=tuple(sorted(options)),
    )


def graph_hash(bundle: Bundle, stage: StageEntry, asked: Precision) -> str:
    """Over the ONNX file and its weights, as the manifest lists them."""
    graph = bundle.graph_name(stage.name, asked)
    return bundle.fingerprint(*(name for name in (graph, f"{graph}.data") if name in bundle.manifest.files))


def _build(bundle: Bundle, key: EngineKey, graph: Path, path: str) -> Bundle:
    target = bundle.root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.stem}.*"):  # of a build that was killed
        leftover.unlink()
    with atomic_file(target) as plan:
        facts = build_engine(Job(key=key, graph=graph.absolute(), plan=plan.absolute(), timing_cache=timing_cache(key)))
    file = FileEntry(sha256=sha256(target), size=target.stat().st_size)
    entry = EngineEntry(key=key, path=path, file=file, facts=facts)
    return with_engines(bundle, (*(other for other in bundle.manifest.engines if other.path != path), entry))


def with_engines(bundle: Bundle, engines: Sequence[EngineEntry]) -> Bundle:
    manifest = bundle.manifest.model_copy(update={"engines": tuple(engines)})
    write_manifest(bundle.root, manifest)
    return Bundle(bundle.root, manifest)


def timing_cache(key: EngineKey) -> Path | None:
    """Measured kernels of earlier builds, for one version and GPU; TensorRT-RTX times nothing when it builds."""
    cache = cache_dir("timing")
    if cache is None or key.backend != "tensorrt":
        return None
    return cache / f"{key.backend}-{key.version}-{'-'.join(key.targets)}.cache"


def intact(bundle: Bundle, entry: EngineEntry) -> bool:
    path = bundle.root / entry.path
    return path.is_file() and path.stat().st_size == entry.file.size and sha256(path) == entry.file.sha256


def find_engine(bundle: Bundle, stage: str, library: Library, asked: Precision, gpu: Gpu) -> EngineEntry:
    """The engine that may run here.

    Raises:
        EngineError: there is none, or it belongs to another graph, version or GPU, or its file was altered.
    """
    entry = bundle.stage(stage)
    typed: Precision = "fp32" if asked == "fp32" else entry.typed(asked)
    found = [
        engine
        for engine in bundle.manifest.engines
        if (engine.key.stage, engine.key.backend, engine.key.precision) == (stage, library.backend, typed)
    ]
    if not found:
        what = f"{library.backend} engine for stage {stage} in {typed}"
        raise EngineError(f"{bundle.root} has no {what}; {mend(bundle, library.backend, asked, gpu)}")
    graph = graph_hash(bundle, entry, asked)
    objections = [objection(engine, library, graph, gpu) for engine in found]
    for engine, wrong in zip(found, objections, strict=True):
        if not wrong:
            if not intact(bundle, engine):
                raise EngineError(f"{bundle.root / engine.path} was altered or cut; {mend_engine(bundle, engine, gpu)}")
            return engine
    raise EngineError(f"{bundle.root / found[0].path} {objections[0]}; {mend_engine(bundle, found[0], gpu)}")


def objection(engine: EngineEntry, library: Library, graph: str, gpu: Gpu | None) -> str:
    """Why an engine may not be loaded here; "" if it may. Without a GPU only graph and version are compared."""
    key = engine.key
    if key.graph != graph:
        return "was built from another graph"
    if key.version != library.version and VERSION_COMPATIBLE not in key.options:
        return f"was built by {library.backend} {key.version}, here is {library.version}"
    if gpu is None or gpu.compute_capability in key.targets:
        return ""
    if HARDWARE_COMPATIBLE in key.options and float(gpu.compute_capability) >= LEAST_COMPATIBLE:
        return ""
    return f"was built for compute capability {', '.join(key.targets)}, {gpu.name} has {gpu.compute_capability}"


def mend(bundle: Bundle, backend: EngineBackend, asked: Precision, gpu: Gpu | None, options: Sequence[str] = ()) -> str:
    """The command that builds for this GPU: TensorRT where TensorRT-RTX cannot."""
    if gpu is not None and gpu.compute_capability not in AHEAD_OF_TIME:
        backend = "tensorrt"
    switches = "".join(f" --{option}" for option in options)
    return f"run python -m runtime build {bundle.root} --backend {backend} --engine {asked}{switches}"


def mend_engine(bundle: Bundle, engine: EngineEntry, gpu: Gpu | None) -> str:
    key = engine.key
    return mend(bundle, key.backend, asked_for(bundle, engine), gpu, key.options)


def asked_for(bundle: Bundle, engine: EngineEntry) -> Precision:
    """The precision that an engine's build was asked for. One in fp32 beside others in half was made with them."""
    key = engine.key
    family = [
        one.key for one in bundle.manifest.engines if (one.key.backend, one.key.targets) == (key.backend, key.targets)
    ]
    half = next((one for one in (key, *family) if one.precision != "fp32"), None)
    if half is None:
        return "fp32"
    precisions = bundle.stage(half.stage).precisions
    return next((entry.asked for entry in precisions if entry.got == half.precision), half.precision)


def prune(bundle: Bundle, libraries: Sequence[Library]) -> tuple[Bundle, list[str]]:
    """Removes engines that no longer fit their graph or the installed library, and files that no engine names.

    Returns:
        The bundle, and what was removed and why, a line each.
    """
    kept, removed = [], []
    versions = {library.backend: library for library in libraries}
    for engine in bundle.manifest.engines:
        library = versions.get(engine.key.backend)
        if not is_current(bundle, engine):
            removed.append(f"{engine.path}: was built from another graph")
        elif library is not None and (wrong := objection(engine, library, engine.key.graph, None)):
            removed.append(f"{engine.path}: {wrong}")
        elif not intact(bundle, engine):
            removed.append(f"{engine.path}: is missing, cut or altered")
        else:
            kept.append(engine)
    if len(kept) < len(bundle.manifest.engines):
        bundle = with_engines(bundle, kept)
    named = {bundle.root / engine.path for engine in kept}
    for path in sorted((bundle.root / FOLDER).rglob("*")):
        if path.is_file() and path not in named:
            name = path.relative_to(bundle.root).as_posix()
            removed += [] if any(line.startswith(name) for line in removed) else [f"{name}: no engine of the manifest"]
            path.unlink()
    return bundle, removed


def is_current(bundle: Bundle, engine: EngineEntry) -> bool:
    """Whether the bundle still has the graph that an engine was built from."""
    stages = [stage for stage in bundle.manifest.stages if stage.name == engine.key.stage]
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
    return any(
        engine.key.graph == graph_hash(bundle, stage, asked)
        for stage in stages
        for asked in precisions
        if asked in stage.onnx
    )
