"""TensorRT-RTX builds for real here, without a GPU: what is built, what is kept, and every way that it can go wrong."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest
from processes import heed_ctrl_c
from small_models import random_photo

from export import onnx_graphs
from export.precision import retype
from runtime import engine_cache
from runtime.bundle import Bundle
from runtime.engine_cache import build_engines, find_engine, mend_engine, objection, prune
from runtime.engines.tensorrt_build import Job, build_engine
from runtime.engines.tensorrt_library import Library, load_library
from runtime.errors import EngineError, InputError
from runtime.gpu import Gpu
from runtime.manifest import EngineKey
from runtime.targets import TARGETS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed; pip install -e '.[dev]'"
)
ROOT = Path(__file__).parents[2]
AMPERE = Gpu("NVIDIA RTX 3090", "8.6", integrated=False)
HOPPER = Gpu("NVIDIA H100", "9.0", integrated=False)
FOUR = tuple(TARGETS[name] for name in ("sm80", "sm86", "sm89", "sm120"))
TURING = Gpu("NVIDIA T4", "7.5", integrated=False)
COMMAND = [sys.executable, "-m", "runtime", "build"]
FOR = ["--backend", "tensorrt-rtx", "--target", "sm86"]
MEND = "run python -m runtime build .* --backend tensorrt-rtx --engine fp16$"


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def built(small_bundle: Path, library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle with every stage built for four kinds of GPU at once. Read only."""
    root = Path(shutil.copytree(small_bundle, tmp_path_factory.mktemp("rtx") / "small"))
    build_engines(Bundle.open(root), library, FOUR, "fp16", most_classes=40)
    return root


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(built, tmp_path / "copy"))


def first_engine(bundle: Bundle, stage: str = "decoder") -> Path:
    return next(bundle.root / entry.path for entry in bundle.manifest.engines if entry.key.stage == stage)


# --- what is built


def test_every_stage_is_built_in_the_precision_of_its_graph(built: Path) -> None:
    bundle = Bundle.open(built)
    entries = {entry.key.stage: entry for entry in bundle.manifest.engines}
    assert list(entries) == [stage.name for stage in bundle.manifest.stages]
    for name, entry in entries.items():
        typed = "fp32" if name == "text_encoder" else "fp16"
        assert entry.key.precision == typed
        assert entry.facts.flops[typed] > (0.8 if name == "anyup" else 0.99), name
        assert entry.key.targets == ("8.0", "8.6", "8.9", "12.0")
        assert (built / entry.path).read_bytes()[:4] == b"vtrt"
        assert 50e6 < entry.facts.peak_memory < 4e9
        assert entry.facts.layers > 10
    assert {name: entry.facts.attention for name, entry in entries.items() if name in ("backbone", "sam_encoder")} == {
        "backbone": 4,  # two of the vision head
        "sam_encoder": 2,
    }
    assert not list(built.rglob(".*"))


def test_engines_are_no_part_of_the_checked_files(built: Path) -> None:
    """They are caches: a bundle without them still opens."""
    shutil.copytree(built, built.with_name("bare"), ignore=shutil.ignore_patterns("engines"))
    assert Bundle.open(built.with_name("bare")).onnx("decoder", "fp16")


def test_the_engine_for_this_gpu_is_found(built: Path, library: Library) -> None:
    entry = find_engine(Bundle.open(built), "backbone", library, "fp16", AMPERE)
    assert entry.path == "engines/tensorrt-rtx-sm80-sm86-sm89-sm120/backbone.fp16.engine"


def test_what_is_up_to_date_is_kept(copy: Bundle, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(job: Job) -> Any:
        raise AssertionError(job.key.stage)

    monkeypatch.setattr(engine_cache, "build_engine", never)
    said: list[str] = []
    build_engines(copy, library, FOUR, "fp16", (), 40, said.append)
    assert said == [f"{stage.name}: the engine is up to date" for stage in copy.manifest.stages]


@pytest.mark.parametrize("change", ["classes", "options", "damage", "target"])
def test_what_differs_is_rebuilt(change: str, copy: Bundle, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuilt: list[str] = []

    def build(job: Job) -> Any:
        rebuilt.append(job.key.stage)
        job.plan.write_bytes(b"vtrt")
        return copy.manifest.engines[0].facts

    monkeypatch.setattr(engine_cache, "build_engine", build)
    names = {stage.name for stage in copy.manifest.stages}
    targets, options, classes = FOUR, (), 40
    if change == "classes":
        classes, expected = 100, {"correlation", "refinement"}
    elif change == "options":
        options, expected = ("unfused-attention",), names
    elif change == "damage":
        first_engine(copy).write_bytes(b"")
        expected = {"decoder"}
    else:
        targets, expected = (TARGETS["sm89"],), names
    said: list[str] = []
    after = build_engines(copy, library, targets, "fp16", options, classes, said.append)
    assert set(rebuilt) == expected
    assert sum("(last time " in line for line in said) == (0 if change == "target" else len(expected))
    assert len(after.manifest.engines) == len(names) * (2 if change == "target" else 1)
    assert Bundle.open(copy.root).manifest == after.manifest


def test_unfused_attention(small_bundle: Path, library: Library, tmp_path: Path) -> None:
    bundle = Bundle.open(small_bundle)
    key = engine_cache.engine_key(
        bundle, bundle.stage("sam_encoder"), library, (TARGETS["sm86"],), "fp16", ("unfused-attention",), 32
    )
    graph = bundle.onnx("sam_encoder", "fp16").absolute()
    plain = build_engine(Job(key=key.model_copy(update={"options": ()}), graph=graph, plan=tmp_path / "plain"))
    apart = build_engine(Job(key=key, graph=graph, plan=tmp_path / "apart"))
    assert apart.layers == plain.layers + 2 * plain.attention  # a cast before and one after each softmax
    assert apart.flops == plain.flops


@pytest.mark.parametrize("stage", ["anyup", "sam_encoder", "decoder"])
def test_bf16_graphs_build(stage: str, job: Callable[..., Job], small_bundle: Path, tmp_path: Path) -> None:
    model = onnx_graphs.load(small_bundle / "onnx" / f"{stage}.fp32.onnx")
    retype(model, stage, "bf16")
    onnx_graphs.save(model, tmp_path / f"{stage}.bf16.onnx")
    made = job(stage, graph=tmp_path / f"{stage}.bf16.onnx")
    facts = build_engine(made.model_copy(update={"key": made.key.model_copy(update={"precision": "bf16"})}))
    assert facts.flops["bf16"] > 0.8
    assert made.plan.stat().st_size > 10_000


# --- an engine that must not be loaded


def test_the_engine_of_another_gpu(built: Path, library: Library) -> None:
    """For which TensorRT-RTX does not build: the command that mends it is TensorRT's."""
    words = r"was built for compute capability 8\.0, 8\.6, 8\.9, 12\.0, NVIDIA H100 has 9\.0; "
    with pytest.raises(EngineError, match=words + MEND.replace("-rtx", "")):
        find_engine(Bundle.open(built), "decoder", library, "fp16", HOPPER)


def test_the_engine_of_another_version(built: Path, library: Library) -> None:
    other = Library(library.backend, type("Module", (), {"__version__": "9.9.9"}), library.logger, [])
    words = rf"was built by tensorrt-rtx {library.version}, here is 9\.9\.9; {MEND}"
    with pytest.raises(EngineError, match=words):
        find_engine(Bundle.open(built), "decoder", other, "fp16", AMPERE)


def test_engines_that_are_compatible(built: Path, library: Library) -> None:
    """Those that were asked to be: with later versions, and with later GPUs from Ampere on."""
    entry = find_engine(Bundle.open(built), "decoder", library, "fp16", AMPERE)
    key = entry.key.model_copy(update={"options": ("hardware-compatible", "version-compatible")})
    compatible = entry.model_copy(update={"key": key})
    other = Library(library.backend, type("Module", (), {"__version__": "9.9.9"}), library.logger, [])
    assert objection(compatible, other, key.graph, HOPPER) == ""
    assert objection(compatible, other, "0" * 64, HOPPER) == "was built from another graph"
    assert "NVIDIA T4 has 7.5" in objection(compatible, other, key.graph, TURING)
    switches = "--backend tensorrt --engine fp16 --hardware-compatible --version-compatible"
    assert mend_engine(Bundle.open(built), compatible, HOPPER).endswith(switches)


def test_the_engine_of_another_graph(copy: Bundle, library: Library) -> None:
    manifest = copy.manifest
    file = manifest.files["onnx/decoder.fp16.onnx"].model_copy(update={"sha256": "0" * 64})
    changed = manifest.model_copy(update={"files": manifest.files | {"onnx/decoder.fp16.onnx": file}})
    with pytest.raises(EngineError, match=rf"decoder.fp16.engine was built from another graph; {MEND}"):
        find_engine(Bundle(copy.root, changed), "decoder", library, "fp16", AMPERE)


def test_one_flipped_bit(copy: Bundle, library: Library) -> None:
    path = first_engine(copy)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineError, match=rf"decoder.fp16.engine was altered or cut; {MEND}"):
        find_engine(Bundle.open(copy.root), "decoder", library, "fp16", AMPERE)


def test_no_engine_at_all(small_bundle: Path, library: Library) -> None:
    with pytest.raises(EngineError, match=f"has no tensorrt-rtx engine for stage decoder in fp16; {MEND}"):
        find_engine(Bundle.open(small_bundle), "decoder", library, "fp16", AMPERE)


def test_prune_removes_what_can_no_longer_be_loaded(copy: Bundle, library: Library) -> None:
    path = first_engine(copy)
    path.write_bytes(path.read_bytes()[:-1])
    left = copy.root / "engines" / "tensorrt-rtx-sm80-sm86-sm89-sm120" / ".backbone.fp16.1234.engine"
    left.touch()
    bundle, removed = prune(copy, [library])
    assert [line.partition("/sm")[0].partition(": ")[2] for line in removed] == [
        "is missing, cut or altered",
        "no engine of the manifest",
    ]
    assert not path.exists()
    assert not left.exists()
    assert Bundle.open(copy.root).manifest == bundle.manifest
    assert len(bundle.manifest.engines) == len(copy.manifest.engines) - 1
    assert prune(bundle, [library]) == (bundle, [])


# --- a build that fails


@pytest.fixture
def job(small_bundle: Path, library: Library, tmp_path: Path) -> Callable[..., Job]:
    bundle = Bundle.open(small_bundle)

    def make(stage: str = "decoder", asked: str = "fp16", **changes: Any) -> Job:
        key: EngineKey = engine_cache.engine_key(
            bundle,
            bundle.stage(stage),
            library,
            (TARGETS["sm86"],),
            asked,  # type: ignore[arg-type]
            (),
            32,
        )
        fields = {"key": key, "graph": bundle.onnx(stage, asked).absolute(), "plan": tmp_path / "plan"}
        return Job(**fields | changes)

    return make


def test_fp16_asked_of_an_fp32_graph(job: Callable[..., Job], small_bundle: Path) -> None:
    graph = Bundle.open(small_bundle).onnx("decoder", "fp32").absolute()
    words = "stage decoder: fp16 was asked for, the network computes 100% fp32 of its FLOPs; .* --engine fp16"
    with pytest.raises(EngineError, match=words):
        build_engine(job(graph=graph))
    assert not job().plan.exists()


def test_a_graph_that_cannot_be_parsed_names_node_and_module(job: Callable[..., Job], tmp_path: Path) -> None:
    made = job()
    model = onnx.load(made.graph)
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    module, name = node.name.rpartition("/")[0], node.name
    node.op_type = "Multinomial"
    onnx.save(model, tmp_path / "decoder.onnx")
    assert module  # the path of the torch module
    with pytest.raises(EngineError, match=f"decoder.onnx could not be parsed: Multinomial {name}: ") as caught:
        build_engine(job(graph=tmp_path / "decoder.onnx"))
    assert "\n" not in str(caught.value)


def test_a_full_disk(job: Callable[..., Job]) -> None:
    with pytest.raises(EngineError, match=r"the plan of \d+ MB cannot be written to /dev \(No space left on device\)"):
        build_engine(job(plan=Path("/dev/full")))


def test_the_build_leaves_nothing_half_written(copy: Bundle, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(job: Job) -> Any:
        job.plan.write_bytes(b"vtrt half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engine_cache, "build_engine", fails)
    before = sorted(path.name for path in (copy.root / "engines").rglob("*"))
    with pytest.raises(OSError, match="No space left"):
        build_engines(copy, library, (TARGETS["sm89"],), "fp16", (), 40)
    after = sorted(path.name for path in (copy.root / "engines").rglob("*"))
    assert after == sorted([*before, "tensorrt-rtx-sm89"])
    assert Bundle.open(copy.root).manifest == copy.manifest


def start(root: Path) -> subprocess.Popen[str]:
    """A build of all stages, stopped at the point where the second one has begun."""
    process = subprocess.Popen(
        [*COMMAND, str(root), *FOR], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("backbone"):
            break
    return process


def builder_of(process: subprocess.Popen[str]) -> psutil.Process:
    while not (children := psutil.Process(process.pid).children()):
        assert process.poll() is None
    return children[0]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def engines_in(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "engines").rglob("*") if path.is_file())


def test_a_killed_build(bundle_copy: Path) -> None:
    process = start(bundle_copy)
    builder_of(process).kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: stage backbone: the build was killed by SIGKILL; if nobody did that, the machine's")
    assert engines_in(bundle_copy) == ["text_encoder.fp32.engine"]
    # The next build goes on behind what is finished.
    again = subprocess.run([*COMMAND, str(bundle_copy), *FOR], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert again.returncode == 0, again.stderr
    assert "text_encoder: the engine is up to date" in again.stderr
    assert f"{len(engines_in(bundle_copy))} engines in {bundle_copy}" in again.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_build(sent: signal.Signals, code: int, bundle_copy: Path) -> None:
    process = start(bundle_copy)
    child = builder_of(process)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    with contextlib.suppress(psutil.NoSuchProcess):  # or dead and not yet collected by the init process
        wait_until(lambda: child.status() == psutil.STATUS_ZOMBIE)
    named = {entry.path.rpartition("/")[2] for entry in Bundle.open(bundle_copy).manifest.engines}
    assert named == {"text_encoder.fp32.engine"}
    if sent != signal.SIGKILL:
        assert engines_in(bundle_copy) == ["text_encoder.fp32.engine"]


# --- the command


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_list_and_prune(copy: Bundle) -> None:
    listed = run(copy.root, "--list")
    assert listed.returncode == 0, listed.stderr
    assert "100.0% fp16" in listed.stderr
    first_engine(copy).unlink()
    pruned = run(copy.root, "--prune")
    assert (
        "removed engines/tensorrt-rtx-sm80-sm86-sm89-sm120/decoder.fp16.engine: is missing, cut or altered"
        in pruned.stderr
    )
    assert f"1 files removed from {copy.root}" in pruned.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "sm90"], "error: target sm90: TensorRT-RTX builds for compute capability"),
        (["--target", "sm86", "--hardware-compatible"], "error: --hardware-compatible is TensorRT's"),
        (["--target", "sm86", "--version-compatible"], "error: --version-compatible needs a GPU"),
        (["--target", "sm86", "--most-classes", "0"], "error: --most-classes is 0; expected 1 to 4096"),
        (["--target", "sm86", "--engine", "bf16"], "error: .* has no bf16 graph for stage text_encoder"),
    ],
)
def test_refusals(options: list[str], words: str, bundle_copy: Path) -> None:
    result = run(bundle_copy, "--backend", "tensorrt-rtx", *options)
    assert result.returncode in (1, 2)
    assert re.search(words, result.stderr.splitlines()[-1]), result.stderr
    assert not (bundle_copy / "engines").exists()


def test_a_target_that_is_misspelt(small_bundle: Path) -> None:
    from runtime.engine_commands import build_for

    with pytest.raises(InputError, match="target 'sm8' does not exist"):
        build_for(Bundle.open(small_bundle), "tensorrt-rtx", ["sm8"], "fp16", (), 32, random_photo(), print)
