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

from export import onnx_graphs
from export.builder import build_bundle
from export.checkpoints import CheckpointFolder
from export.ladder import EAGER, EMULATED
from export.reference import example
from export.request import Build
from export.stages import stage_table
from runtime.bundle import Bundle, new_bundle, sha256
from runtime.errors import WeightsError
from runtime.manifest import TensorSpec
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
    expected = {(name, *run) for name in names for run in (*runs, (EMULATED, "fp16"), (EAGER, "fp16"))}
    expected -= {("text_encoder", backend, "fp16") for backend in ("onnxruntime", EMULATED, EAGER)}
    assert rows == expected - {("anyup", EAGER, "fp16")}  # keeps a module in fp32
    assert list(manifest.end_to_end) == built.end_to_end
    agreement = {(run.backend, run.precision): run.agreement for run in manifest.end_to_end}
    assert list(agreement) == runs
    assert agreement["onnxruntime", "fp32"] > 0.999
    assert agreement["openvino", "fp32"] > 0.995
    assert agreement["onnxruntime", "fp16"] > 0.9
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
    assert [run.agreement for run in built.end_to_end] == [pytest.approx(1, abs=1e-3)]
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
    assert [run.agreement for run in built.end_to_end] == [pytest.approx(1, abs=1e-3)]
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
