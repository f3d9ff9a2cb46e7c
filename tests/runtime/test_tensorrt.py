"""The TensorRT adapter over three generations of its API, and the whole pipeline on a device that is late."""

from __future__ import annotations

import importlib
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import fake_tensorrt
import numpy as np
import pytest
from small_models import CLASSES, random_photo

import runtime.engines
from runtime import Segmenter, engine_cache, gpu
from runtime.bundle import Bundle
from runtime.engine_cache import build_engines, engine_key
from runtime.engines import tensorrt_build, tensorrt_library
from runtime.engines.on_host import HostEngine
from runtime.engines.tensorrt import OpenEngine
from runtime.engines.tensorrt_build import Job, build
from runtime.engines.tensorrt_library import Library, load_library
from runtime.engines.tensorrt_network import fused_attention
from runtime.errors import EngineError, InputError
from runtime.gpu import Gpu
from runtime.targets import TARGETS

VERSIONS = ["10.3.0", "10.13.3.9", "11.4.0"]


@pytest.fixture(autouse=True)
def one_logger_a_test() -> Iterator[None]:
    load_library.cache_clear()
    yield
    load_library.cache_clear()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of compute capability 8.6."""
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: fake_cuda.core if name == "cuda.core" else real(name))
    monkeypatch.setattr(gpu, "free_memory", lambda: 8 << 30)


def install(monkeypatch: pytest.MonkeyPatch, version: str, failure: tuple[str, ...] | None = None) -> Library:
    module = fake_tensorrt.fake(version, failure)
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: module if name == "tensorrt" else real(name))
    return load_library("tensorrt")


def job(small_bundle: Path, library: Library, tmp_path: Path, *options: str) -> Job:
    bundle = Bundle.open(small_bundle)
    target = (TARGETS["sm86"],)
    key = engine_key(bundle, bundle.stage("backbone"), library, target, "fp16", options, 32)
    graph = bundle.onnx("backbone", "fp16")
    return Job(key=key, graph=graph, plan=tmp_path / "plan", timing_cache=tmp_path / "timing" / "cache")


# --- building


@pytest.mark.parametrize("version", VERSIONS)
def test_the_builder_is_told_what_every_version_understands(
    version: str, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: None
) -> None:
    library = install(monkeypatch, version)
    (tmp_path / "timing").mkdir()
    (tmp_path / "timing" / "cache").write_bytes(b"known")
    facts = build(job(small_bundle, library, tmp_path), library)
    [config] = library.module.configs
    assert config.flags == set()  # fp32 is fp32: no TF32
    assert config.said["WORKSPACE"] == 4 << 30
    assert (tmp_path / "timing" / "cache").read_bytes() == b"known+"
    assert [profile.shapes["image"][2] for profile in config.profiles] == [(4, 3, 64, 64), (1, 3, 96, 96)]
    assert facts.fused_attention == 1
    assert not hasattr(config, "hardware_compatibility_level")


def test_switches(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = install(monkeypatch, "10.3.0")
    build(job(small_bundle, library, tmp_path, "version-compatible", "hardware-compatible"), library)
    [config] = library.module.configs
    assert config.flags == {"VERSION_COMPATIBLE"}
    assert config.hardware_compatibility_level == "AMPERE_PLUS"
    assert "WORKSPACE" not in config.said  # without a GPU nothing is known of its memory


def test_version_compatible_engines_are_read_back(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: None
) -> None:
    """They hold code of their own, which TensorRT does not run unless it is allowed."""
    library = install(monkeypatch, "10.13.3.9")
    assert build(job(small_bundle, library, tmp_path, "version-compatible"), library).fused_attention == 1


@pytest.mark.parametrize(
    ("logged", "words"),
    [
        (["Could not find any implementation for node {...}"], "no kernel fitted into the free memory"),
        (["Requested size was\n 99 bytes", "GPU out of memory"], "the GPU's memory is used up; close other programs"),
        (["std::bad_alloc"], "the machine's memory is used up"),
        (["Something else\nis wrong"], "could not build the engine: Something else is wrong"),
    ],
)
def test_a_build_that_returns_none(
    logged: list[str], words: str, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = install(monkeypatch, "10.13.3.9", tuple(logged))
    with pytest.raises(EngineError, match=f"TensorRT 10.13.3.9 could not build the engine: .*{words[-20:]}") as caught:
        build(job(small_bundle, library, tmp_path), library)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "plan").exists()


def test_attention_kernels_are_counted_by_name() -> None:
    layers = ['{"Name": "_gemm_mha_v2_0x1"}', '{"LayerType": "fused_attention"}', '{"Name": "fc1 + gelu"}']
    assert fused_attention(f'{{"Layers": [{", ".join(layers)}]}}') == 2
    assert fused_attention('{"Layers": ["a", "b"]}') == 0


# --- what is missing


@pytest.mark.parametrize(
    ("backend", "machine", "words"),
    [
        ("tensorrt", "x86_64", "^TensorRT is not installed; pip install tensorrt$"),
        ("tensorrt", "aarch64", "on Jetson it comes with JetPack: sudo apt install python3-libnvinfer"),
        ("tensorrt-rtx", "x86_64", "^TensorRT-RTX is not installed; pip install tensorrt-rtx-cu13 "),
        ("tensorrt-rtx", "aarch64", "does not run on Jetson: use --backend tensorrt"),
    ],
)
def test_a_missing_library(backend: str, machine: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)

    def nothing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", nothing)
    with pytest.raises(EngineError, match=words):
        load_library(backend)  # type: ignore[arg-type]


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(EngineError, match=r"cannot be loaded \(libnvinfer.*; run python -m runtime doctor"):
        load_library("tensorrt")


def test_no_gpu(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3.0")
    monkeypatch.setattr(runtime.engines.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(gpu, "cuda_core", lambda: None)
    with (
        pytest.warns(UserWarning, match="random weights"),
        pytest.raises(EngineError, match="needs an NVIDIA GPU, none"),
    ):
        Segmenter.load(small_bundle, CLASSES, backend="tensorrt", cache_dir=None)
    with (
        pytest.warns(UserWarning, match="random weights"),
        pytest.raises(InputError, match="backend tensorrt does not run on device cpu"),
    ):
        Segmenter.load(small_bundle, CLASSES, backend="tensorrt", device="cpu", cache_dir=None)


def test_no_cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", nothing)
    with pytest.raises(EngineError, match="is not installed; pip install cuda-core cuda-bindings"):
        gpu.cuda_core()
    assert gpu.find_gpu() is None


# --- running


@pytest.fixture
def on_device(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: None
) -> tuple[Bundle, Library]:
    """The small bundle with "engines" of the fake TensorRT for this GPU, built in this process."""
    library = install(monkeypatch, "10.13.3.9")
    monkeypatch.setattr(engine_cache, "build_engine", lambda job: build(job, library))
    monkeypatch.setattr(runtime.engines.importlib.util, "find_spec", lambda name: True)
    bundle = Bundle.open(shutil.copytree(small_bundle, tmp_path / "bundle"))
    return build_engines(bundle, library, (TARGETS["sm86"],), "fp16"), library


@pytest.mark.parametrize("backend", ["tensorrt", "auto"])
def test_the_pipeline_on_the_device(backend: str, on_device: tuple[Bundle, Library]) -> None:
    root = on_device[0].root
    with pytest.warns(UserWarning, match="random weights"):
        expected = Segmenter.load(root, CLASSES, backend="onnxruntime", precision="fp16", cache_dir=None)
        found = Segmenter.load(root, CLASSES, backend=backend, precision="fp16", cache_dir=None)
    entered = fake_cuda.Device.entered
    with expected, found:
        for seed in range(2):
            photo = random_photo(seed=seed)
            assert np.array_equal(found(photo).labels, expected(photo).labels)
        assert np.array_equal(found.submit(photo).result().labels, expected(photo).labels)  # from another thread
        assert "fp16" in found.precision["backbone"]
    assert fake_cuda.Device.entered > entered + 2


def test_auto_says_why_engines_are_not_used(on_device: tuple[Bundle, Library], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = on_device[0]
    monkeypatch.setattr(gpu, "find_gpu", lambda: Gpu("NVIDIA Other", "8.9", integrated=False))
    words = (
        r"runs on the CPU: the tensorrt engine of stage text_encoder was built for .* 8.6, NVIDIA Other has 8.9; run"
    )
    with pytest.warns(UserWarning, match=words):
        assert runtime.engines.best_backend(bundle, None) == ("onnxruntime", "fp32")


def test_engines_of_other_gpus_beside_those_that_fit(on_device: tuple[Bundle, Library]) -> None:
    bundle = on_device[0]
    others = tuple(
        engine.model_copy(update={"key": engine.key.model_copy(update={"targets": ("12.0",)})})
        for engine in bundle.manifest.engines
    )
    both = bundle.manifest.model_copy(update={"engines": others + bundle.manifest.engines})
    assert runtime.engines.best_backend(Bundle(bundle.root, both), None) == ("tensorrt", "fp16")
    assert runtime.engines.backend_for(Bundle(bundle.root, both), "auto", "fp16") == ("tensorrt", "fp16")
    assert runtime.engines.backend_for(Bundle(bundle.root, both), "onnxruntime", None) == ("onnxruntime", "fp32")


def test_more_classes_than_were_built_for(on_device: tuple[Bundle, Library]) -> None:
    bundle, library = on_device
    entry = next(entry for entry in bundle.manifest.engines if entry.key.stage == "correlation")
    engine = HostEngine(OpenEngine(library, bundle.root, entry))
    shapes = {
        value.name: [300 if n == "classes" else n for n in value.shape] for value in bundle.stage("correlation").inputs
    }
    with pytest.raises(EngineError, match=r"stage correlation: .*lies outside every profile .*--most-classes"):
        engine({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


def test_an_engine_that_does_not_open(on_device: tuple[Bundle, Library]) -> None:
    bundle, library = on_device
    entry = bundle.manifest.engines[0]
    (bundle.root / entry.path).write_bytes(b"garbage")
    with pytest.raises(EngineError, match=r"the engine does not open: Serialization assertion magicTag failed"):
        HostEngine(OpenEngine(library, bundle.root, entry))


def test_buffers_are_reused_and_freed(on_device: tuple[Bundle, Library]) -> None:
    bundle, library = on_device
    entry = next(entry for entry in bundle.manifest.engines if entry.key.stage == "correlation")
    engine = HostEngine(OpenEngine(library, bundle.root, entry))
    inputs = bundle.stage("correlation").inputs
    rng = np.random.default_rng(0)
    before = len(fake_cuda.Buffer.live)
    for count in (3, 3, 7, 7, 1):
        shapes = {value.name: [count if n == "classes" else n for n in value.shape] for value in inputs}
        tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        assert engine(tensors)["correlation"].shape[0] == count
        assert len(fake_cuda.Buffer.live) == before + 2 * 3  # two inputs and an output, on host and device


def test_gpu_facts(device: None) -> None:
    assert gpu.find_gpu() == Gpu("NVIDIA Fake", "8.6", integrated=False)
    assert tensorrt_build.find_gpu is gpu.find_gpu
    assert tensorrt_library.MODULES["tensorrt-rtx"] == "tensorrt_rtx"
