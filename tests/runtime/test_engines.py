"""Engines: the choice of library and precision, what they say of themselves, and equal results."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import Bundle
from runtime.engines import choose_backend, graph_precision, open_engine
from runtime.engines.base import contiguous
from runtime.errors import EngineError, InputError


@pytest.mark.parametrize(
    ("backend", "precision", "chosen"),
    [
        ("auto", None, ("onnxruntime", "fp32")),
        ("auto", "fp16", ("onnxruntime", "fp16")),
        ("auto", "bf16", ("openvino", "bf16")),
        ("openvino", None, ("openvino", "bf16")),
        ("openvino", "fp32", ("openvino", "fp32")),
        ("onnxruntime", "fp16", ("onnxruntime", "fp16")),
    ],
)
def test_choice(backend: str, precision: str | None, chosen: tuple[str, str]) -> None:
    assert choose_backend(backend, precision) == chosen


@pytest.mark.parametrize(
    ("backend", "precision", "words"),
    [
        ("tensorrt9", None, "backend is 'tensorrt9'; expected auto or one of"),
        ("auto", "int4", "precision is 'int4'; expected one of fp32, fp16, bf16"),
        ("onnxruntime", "bf16", "use backend openvino for bf16"),
        ("onnxruntime-cuda", "bf16", "runs fp32 and fp16 graphs; use tensorrt or tensorrt-rtx for bf16"),
    ],
)
def test_bad_choice(backend: str, precision: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        choose_backend(backend, precision)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_library_that_is_not_installed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=rf"^{backend} is not installed; pip install {backend}$"):
        choose_backend(backend, "fp32")


def test_bf16_runs_the_fp32_graph() -> None:
    assert [graph_precision(name) for name in ("fp32", "fp16", "bf16")] == ["fp32", "fp16", "fp32"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_damaged_graph_is_one_line(backend: str, tmp_path: Path) -> None:
    graph = tmp_path / "x.onnx"
    graph.write_bytes(b"not an onnx file")
    with pytest.raises(EngineError, match=r"cannot load .*x\.onnx") as caught:
        open_engine(backend, graph, "fp32", None)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "precision", "says"),
    [("onnxruntime", "fp32", "fp32"), ("onnxruntime", "fp16", "fp16 storage, fp32"), ("openvino", "fp32", "fp32")],
)
def test_results_are_the_callers_to_keep(backend: str, precision: str, says: str, small_bundle: Path) -> None:
    """A second call must not overwrite what the first one returned."""
    engine = open_engine(backend, Bundle.open(small_bundle).onnx("correlation", precision), precision, 1)  # type: ignore[arg-type]
    assert engine.precision.startswith(says)
    rng = np.random.default_rng(0)

    def inputs(classes: int) -> dict[str, np.ndarray]:
        sizes = {"features": (36, 192), "text": (classes, 2, 192)}
        return {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}

    first = engine(inputs(3))
    kept = first["correlation"].copy()
    assert set(first) == {"correlation"}
    assert kept.shape == (3, 2, 6, 6)
    assert kept.dtype == np.float32
    assert engine(inputs(3))["correlation"].shape == engine(inputs(1))["correlation"][[0, 0, 0]].shape
    assert np.array_equal(first["correlation"], kept)


def test_strided_inputs_are_read_as_they_look(small_bundle: Path) -> None:
    engine = open_engine("openvino", Bundle.open(small_bundle).onnx("correlation", "fp32"), "fp32", 1)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((192, 36)).astype(np.float32).T
    text = rng.standard_normal((6, 2, 192)).astype(np.float32)[::-2]
    strided = engine({"features": features, "text": text})["correlation"]
    plain = engine({"features": features.copy("C"), "text": text.copy("C")})["correlation"]
    assert np.array_equal(strided, plain)
    assert contiguous({"text": text})["text"].flags.c_contiguous
