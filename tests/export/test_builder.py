"""Bundles of every variant agree with torch; what a failed build leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from official_files import FILES, PERIODS, write_official_files
from small_models import CLASSES, random_photo, small_config, small_request

from export import builder, onnx_graphs, parity
from export.builder import Build, build_bundle
from export.checkpoints import CheckpointFolder
from export.ladder import EMULATED
from export.reference import example
from export.stages import stage_table
from runtime.bundle import Bundle, new_bundle, sha256
from runtime.errors import ParityError, WeightsError
from runtime.manifest import StageParity, TensorSpec
from runtime.segmenter import Segmenter


def build(target: Path, **changes: Any) -> Build:
    with new_bundle(target) as folder:
        return build_bundle(small_request(**changes), folder)


def stages_of(target: Path) -> list[str]:
    return [stage.name for stage in Bundle.open(target).manifest.stages]


def segment(target: Path, classes: Any = CLASSES) -> np.ndarray:
    with pytest.warns(UserWarning, match="random weights"):
        segmenter = Segmenter.load(target, classes, cache_dir=None)
    with segmenter:
        return segmenter(random_photo()).labels


def test_the_small_bundle(small_build: tuple[Path, Build]) -> None:
    target, built = small_build
    manifest = Bundle.open(target).manifest
    names = [stage.name for stage in stage_table(small_config(), refinement=True)]
    assert stages_of(target) == names
    assert manifest.random_weights
    assert manifest.weights == {}
    assert manifest.pipeline.rope_periods == pytest.approx([100 ** (i / 16) for i in range(16)], rel=5e-3)
    assert manifest.model == small_config().model_dump(mode="json")
    assert {"python", "torch", "onnx", "onnxruntime", "openvino"} <= set(manifest.tools)
    rows = {(row.stage, row.backend, row.precision) for row in manifest.parity}
    runs = [("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("openvino", "fp32")]
    expected = {(name, *run) for name in names for run in (*runs, (EMULATED, "fp16"))}
    assert rows == expected - {("text_encoder", backend, "fp16") for backend in ("onnxruntime", EMULATED)}
    assert manifest.label_agreement == built.label_agreement
    assert set(manifest.label_agreement) == {" ".join(run) for run in runs}
    assert manifest.label_agreement["onnxruntime fp32"] > 0.999
    assert manifest.label_agreement["openvino fp32"] > 0.995
    assert manifest.label_agreement["onnxruntime fp16"] > 0.9
    exact = {row.stage: row.relative_rms_error for row in manifest.parity if row.precision == "fp32"}
    assert exact.pop("anyup") < 5e-5  # sharp attention between random features
    assert max(exact.values()) < 5e-6
    assert any(row.relative_rms_error > 1e-4 for row in manifest.parity if row.precision == "fp16")


def test_official_weights_without_refinement(tmp_path: Path) -> None:
    """The training-free pipeline, from files, without AnyUp, scored by the mean of both text halves."""
    config = small_config("early_refinement=none", "training_free_text=mean")
    folder = tmp_path / "weights"
    folder.mkdir()
    write_official_files(folder, config)
    (folder / FILES["refinement"]).unlink()
    weights = CheckpointFolder(folder, config)
    target = tmp_path / "bundle"
    built = build(target, config=config, weights=weights, weights_dir=folder, refinement=False)
    manifest = Bundle.open(target).manifest
    assert stages_of(target) == ["text_encoder", "backbone", "correlation"]
    assert built.label_agreement == {"onnxruntime fp32": pytest.approx(1, abs=1e-3)}
    assert manifest.weights == {FILES[file]: sha256(folder / FILES[file]) for file in ("backbone", "dinotxt")}
    assert not manifest.random_weights
    assert manifest.pipeline.rope_periods == PERIODS
    assert manifest.pipeline.training_free_text == "mean"
    with Segmenter.load(target, CLASSES, cache_dir=None) as segmenter:
        result = segmenter(random_photo())
        assert len(np.unique(result.labels)) > 1
        assert result.scores is not None
        assert result.scores.max() <= 1.0001  # cosines


def test_every_option_at_once(tmp_path: Path) -> None:
    """AnyUp on each of 3x3 crops, SAM at another size, seven classes through a head for four, full attention."""
    config = small_config(
        "early_refinement=before_merge",
        "geometry.stride=16",
        "sam.input_size=64",
        "refinement.pad_len=4",
        "refinement.attention_type=full",
        "refinement.num_layers=1",
        "backbone.depth=1",
        "prompting.first_synonym=true",
    )
    classes = (*CLASSES, "spoon, ladle", "door")
    vocabulary = tmp_path / "kitchen.txt"
    vocabulary.write_text("\n".join(classes))
    target = tmp_path / "bundle"
    built = build(target, config=config, classes=classes, vocabularies=(vocabulary,))
    table = {stage.name for stage in stage_table(config, refinement=True)}
    assert set(stages_of(target)) == table >= {"anyup", "anyup_crop", "sam_encoder", "refinement"}
    assert built.label_agreement == {"onnxruntime fp32": pytest.approx(1, abs=1e-3)}
    assert "text/kitchen.npz" in Bundle.open(target).manifest.files
    labels = segment(target, list(classes))
    assert len(np.unique(labels)) <= 4
    assert labels.max() < 7


# --- failures


class StopWeights:
    """Fails at the given part."""

    random = True

    def __init__(self, error: BaseException, part: str) -> None:
        self.error, self.part = error, part

    def fill(self, module: Any, part: str) -> None:
        from export.random_weights import RandomWeights

        if part == self.part:
            raise self.error
        RandomWeights().fill(module, part)

    def checksums(self) -> dict[str, str]:
        return {}


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (WeightsError("x"), "backbone"),
        (KeyboardInterrupt(), "vision_head"),
        (SystemExit(143), "text_encoder"),
        (MemoryError(), "text_encoder"),
    ],
)
def test_a_failure_half_way_leaves_nothing(error: BaseException, part: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        build(tmp_path / "bundle", weights=StopWeights(error, part))
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_differs_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builder.open_engine

    def wrong(*arguments: Any) -> Any:
        engine = real(*arguments)
        return lambda inputs: {name: value * 1.001 for name, value in engine(inputs).items()}

    monkeypatch.setattr(builder, "open_engine", wrong)
    config = small_config("early_refinement=none", "backbone.depth=1")
    with pytest.raises(ParityError, match=r"stage text_encoder: onnxruntime fp32 .* over 1e-04; nothing was written"):
        build(tmp_path / "bundle", config=config, refinement=False)
    assert list(tmp_path.iterdir()) == []


# --- parts


def test_dynamic_axes_of_length_one_are_doubled() -> None:
    stage = next(stage for stage in stage_table(small_config(), True) if stage.name == "decoder")
    inputs = {
        spec.name: np.ones([1 if isinstance(axis, str) else axis for axis in spec.shape]) for spec in stage.inputs
    }
    assert example(stage, inputs)["class_features"].shape[0] == 2
    assert example(stage, inputs)["guidance1"].shape[0] == 1
    wider = replace(stage, inputs=(TensorSpec(name="class_features", dtype="float32", shape=("a", "b", 6, 6)),))
    tensor = example(wider, {"class_features": np.arange(36.0).reshape(1, 1, 6, 6)})["class_features"]
    assert tensor.shape == (2, 2, 6, 6)


def errors(found: np.ndarray, expected: np.ndarray) -> StageParity:
    return parity.compare("x", "fp32", "onnxruntime", {"y": found}, {"y": expected})


def test_parity_numbers() -> None:
    expected = np.array([3.0, -4.0, 0.0, 0.0], np.float32)
    row = errors(expected + np.array([0, 0, 0.5, 0], np.float32), expected)
    assert row.max_abs_error == 0.5
    assert row.relative_rms_error == pytest.approx(0.5 / 5)
    assert errors(expected, expected).max_abs_error == 0
    assert errors(np.full(4, 0.25), np.zeros(4)).relative_rms_error == 0.25


@pytest.mark.parametrize("found", [np.array([1, np.nan]), np.array([1, np.inf]), np.array([[1.0, 2.0]])])
def test_parity_of_what_cannot_be_compared_is_infinite(found: np.ndarray) -> None:
    row = errors(found, np.array([1.0, 2.0]))
    assert row.relative_rms_error == row.max_abs_error == float("inf")
    with pytest.raises(ParityError):
        parity.gate([row])


def test_a_missing_output_is_an_error() -> None:
    with pytest.raises(KeyError):
        parity.compare("x", "fp32", "onnxruntime", {}, {"y": np.ones(2)})


def parity_row(precision: Any, error: float, stage: str = "x") -> StageParity:
    return StageParity(
        stage=stage, precision=precision, backend="openvino", max_abs_error=error, relative_rms_error=error
    )


@pytest.mark.parametrize(("precision", "limit"), list(parity.LIMITS.items()))
def test_gate(precision: Any, limit: float) -> None:
    parity.gate([parity_row(precision, limit)])
    with pytest.raises(ParityError, match=f"stage b: openvino {precision}"):
        parity.gate([parity_row(precision, limit / 2, "a"), parity_row(precision, limit * 1.1, "b")])
    with pytest.raises(ParityError):
        parity.gate([parity_row(precision, float("nan"))])


def test_the_worst_of_several_calls() -> None:
    rows = [parity_row("fp32", 1.0), parity_row("fp32", 3.0), parity_row("fp32", 2.0), parity_row("fp16", 0.5)]
    assert [(row.precision, row.max_abs_error) for row in parity.worst(rows)] == [("fp32", 3.0), ("fp16", 0.5)]


def test_graph_sizes_are_the_files(small_build: tuple[Path, Build]) -> None:
    target, built = small_build
    for stage in built.stages:
        for precision, graph in stage.graphs.items():
            files = (target / "onnx").glob(f"{stage.stage.name}.{precision}.onnx*")
            assert graph.size == sum(file.stat().st_size for file in files)
            assert graph.nodes == len(onnx_graphs.load(target / "onnx" / graph.path.name).graph)


def test_the_manifest_is_readable_json(small_bundle: Path) -> None:
    content = json.loads((small_bundle / "manifest.json").read_text(encoding="utf-8"))
    assert content["schema_version"] == 1
    assert str(small_bundle) not in json.dumps(content)
