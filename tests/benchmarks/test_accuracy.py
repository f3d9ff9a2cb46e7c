"""The accuracy benchmark: its command, files and pictures, and the pipeline's views."""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import accuracy, accuracy_record, accuracy_run, confusion_chart, sheets
from benchmarks.datasets import Identity, Tabletop
from benchmarks.scene_vocabulary import VOCABULARY
from benchmarks.scenes import make_scene
from runtime.bundle import MANIFEST, Bundle, sha256
from runtime.engine_cache import graph_hash
from runtime.engines import open_engine
from runtime.pipeline import Pipeline, Views

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "benchmarks/accuracy.py"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120)


def error_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


# Views.


def test_views_change_the_features_and_skip_a_backbone_call(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    calls: list[int] = []
    features: dict[str, np.ndarray] = {}
    engines = {
        stage.name: open_engine("onnxruntime", bundle.onnx(stage.name, "fp32"), "fp32", 1)
        for stage in bundle.manifest.stages
        if stage.name != "text_encoder"
    }
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    text = np.random.default_rng(1).normal(size=(3, 2, 192)).astype(np.float32)
    text /= np.linalg.norm(text, axis=2, keepdims=True)

    def record(view: str, stage: str) -> Any:
        def call(inputs: Any) -> Any:
            if stage == "backbone":
                calls.append(inputs["image"].shape[-1])
            if stage == "anyup":
                features[view] = inputs["features"]
            return engines[stage](inputs)

        return call

    views: tuple[tuple[Views, list[int]], ...] = (("both", [64, 96]), ("crops", [64]), ("full", [96]))
    for view, sizes in views:
        calls.clear()
        recorded = {stage: record(view, stage) for stage in engines}
        result = Pipeline(bundle.manifest.pipeline, recorded, views=view)(photo, text)
        assert calls == sizes
        assert ("backbone crops" in result.timings, "backbone full" in result.timings) == (64 in sizes, 96 in sizes)
    np.testing.assert_allclose(features["both"], (features["crops"] + features["full"]) / 2, atol=1e-5)
    assert np.abs(features["crops"] - features["full"]).max() > 1e-3


# Pictures and names.


def test_the_sheet_sets_the_first_beside_the_last_with_the_same_views() -> None:
    def contestant(side: str, views: Views, label: int) -> accuracy_run.Contestant:
        def pipeline(image: np.ndarray, text: np.ndarray, scores: bool) -> Any:
            labels = np.full(image.shape[:2], label, np.uint8)
            return SimpleNamespace(labels=labels, timings={"total": 1.0}, refined=3)

        pipeline.views, pipeline.engines = views, {}
        return accuracy_run.Contestant(side, "fp32", pipeline, np.zeros((1, 2, 4), np.float32))

    contestants = [
        contestant(side, views, label)
        for label, (side, views) in enumerate((side, views) for side in ("a", "b") for views in ("both", "full"))
    ]
    found = accuracy_run.evaluate(contestants, Tabletop("test", 1, 96))
    assert found.titles == ("a fp32", "b fp32")
    assert [np.unique(labels) for labels in (found.examples[0].first, found.examples[0].last)] == [[0], [2]]


def test_what_a_shortlist_gains_is_measured_picture_by_picture() -> None:
    """Beside the same engine without; who begins changes."""
    order: list[int] = []

    def contestant(shortlist: int, milliseconds: list[float]) -> accuracy_run.Contestant:
        times = iter(milliseconds)

        def pipeline(image: np.ndarray, text: np.ndarray, scores: bool) -> Any:
            order.append(shortlist)
            labels = np.full(image.shape[:2], shortlist, np.uint8)
            return SimpleNamespace(labels=labels, timings={"total": next(times)}, refined=2 * shortlist or 69)

        pipeline.views, pipeline.engines = "both", {}
        return accuracy_run.Contestant("a", "fp32", pipeline, np.zeros((1, 2, 4), np.float32), shortlist)

    contestants = [contestant(0, [10, 40, 90]), contestant(3, [5, 10, 10])]
    full, short = accuracy_run.evaluate(contestants, Tabletop("test", 3, 96)).scores
    assert order == [0, 3, 3, 0, 0, 3]
    assert (full.shortlist, full.refined, full.speedup, full.agreement) == (0, 69, None, None)
    assert (short.shortlist, short.refined, short.speedup, short.agreement) == (3, 6, 4, 0)


@pytest.mark.parametrize("seed", range(8))
def test_names_on_the_sheet_cover_neither_each_other_nor_small_objects(seed: int) -> None:
    labels = make_scene(seed, split="test").labels
    regions = [region for index in np.unique(labels) if (region := sheets.widest_region(labels, index))]
    regions.sort(key=lambda region: -region.depth)
    names = [VOCABULARY[region.label] for region in regions]
    found = list(sheets.places(regions, names, labels.shape))
    assert len(found) > len(regions) / 2
    boxes = []
    for region, (x, y) in found:
        wide = 1.2 * len(VOCABULARY[region.label])  # pixels: a little less than a letter takes
        box = x - wide, y - 3, x + wide, y + 3
        assert 0 <= box[0] < box[2] <= 320
        assert not any(sheets.meet(box, other) for other in boxes)
        assert not any(sheets.meet(box, other.box) for other in regions if other.depth < 5)
        boxes.append(box)


def test_confusion_panels_keep_every_object_pixel() -> None:
    counts = np.zeros((69, 70), np.int64)
    red_cube, red_ball, blue_ball = map(VOCABULARY.index, ("red cube", "red ball", "blue ball"))
    counts[red_cube, red_ball], counts[red_ball, blue_ball], counts[red_ball, 0], counts[1, red_cube] = 5, 3, 2, 7
    appearance, shape, surfaces = confusion_chart.tabletop_panels(counts)
    cells = {(p.rows[r], p.columns[c]): int(p.counts[r, c]) for p in (appearance, shape) for r, c in nonzero(p)}
    assert cells == {
        ("red", "red"): 5,
        ("red", "blue"): 3,
        ("red", "surface"): 2,
        ("cube", "ball"): 5,
        ("ball", "ball"): 3,
        ("ball", "surface"): 2,
    }
    named = {(surfaces.rows[r], surfaces.columns[c]): int(surfaces.counts[r, c]) for r, c in nonzero(surfaces)}
    assert named == {("object", "object"): 8, ("object", "table"): 2, ("wall", "object"): 7}


def nonzero(panel: confusion_chart.Panel) -> np.ndarray:
    return np.argwhere(panel.counts)


def test_confusion_of_many_classes_shows_the_largest() -> None:
    counts = np.diag(np.arange(1, 31))
    counts = np.column_stack([counts, np.zeros(30, int)])
    counts[29, 0] = 4
    panel = confusion_chart.largest_classes(counts, [f"class {i}" for i in range(30)])
    assert len(panel.rows) == 20
    assert panel.rows[0] == "class 29"
    assert (panel.counts[0, 0], panel.counts[0, -1]) == (30, 4)


def test_file_names() -> None:
    scenes = Identity(name="tabletop", images=2, classes=69, split="test", size=320, seeds=(0, 1))
    assert accuracy_record.file_stem("Tiny 3x3", scenes) == "tiny-3x3-accuracy"
    assert accuracy_record.file_stem("tiny", scenes.model_copy(update={"split": "hard"})) == "tiny-hard-accuracy"
    assert accuracy_record.file_stem("tiny", scenes, shortlists=True) == "tiny-shortlist-accuracy"
    assert accuracy_record.file_stem("tiny", Identity(name="test", images=2, classes=3)) == "tiny-test-accuracy"


# The command.


def test_two_scenes_from_end_to_end(small_bundle: Path, tmp_path: Path) -> None:
    done = run(
        *("--bundle", small_bundle, "--scenes", "2", "--size", "96", "--threads", "1", f"--out={tmp_path}"),
        *("--views", "both", "--views", "full"),
    )
    assert done.returncode == 0, done.stderr
    assert "scores mean nothing" in done.stderr
    [data] = tmp_path.glob("cpu-*/*.json")
    assert data.name == "small-accuracy.json"
    assert sorted(path.name for path in data.parent.iterdir() if path != data) == [
        "small-accuracy-confusion.png",
        "small-accuracy-sheet.png",
    ]
    text = data.read_text()
    for private in (str(ROOT), str(tmp_path), str(small_bundle.parent), f"/{getpass.getuser()}/"):
        assert private not in text
    found = accuracy_record.AccuracyRecord.model_validate_json(text)
    assert found.bundle.manifest_sha256 == sha256(small_bundle / MANIFEST)
    assert (found.data.split, found.data.seeds, found.data.size) == ("test", (0, 1), 96)
    assert found.command == "python benchmarks/accuracy.py --bundle small --scenes 2 --size 96 --threads 1 " + (
        f"--out={tmp_path.name} --views both --views full"
    )
    assert [(one.contestant, one.views) for one in found.scores] == [
        (name, views) for name in ("torch fp32", "onnxruntime fp32", "onnxruntime fp16") for views in ("both", "full")
    ]
    torch_both, torch_full, fp32, *_ = found.scores
    assert torch_both.agreement is torch_full.agreement is None
    assert fp32.agreement is not None
    assert fp32.agreement > 0.99
    assert set(fp32.miou) == {"all", "surfaces", "seen pairs", "unseen pairs", "small objects"}
    assert set(fp32.class_iou) == set(VOCABULARY)
    assert fp32.miou["all"] == pytest.approx(np.mean([iou for iou in fp32.class_iou.values() if iou is not None]))


def test_shortlists_from_end_to_end(small_bundle: Path, tmp_path: Path) -> None:
    done = run(
        *("--bundle", small_bundle, "--scenes", "1", "--size", "96", "--no-torch", "--engine", "fp32"),
        *("--threads", "1", "--shortlist", "1", "--shortlist", "69", f"--out={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    assert "shortlists of 69 classes" in done.stderr
    [data] = tmp_path.glob("cpu-*/small-shortlist-accuracy.json")
    found = accuracy_record.AccuracyRecord.model_validate_json(data.read_text())
    assert [(one.contestant, one.shortlist) for one in found.scores] == [("onnxruntime fp32", m) for m in (0, 1, 69)]
    every, one, all_listed = found.scores
    assert (every.refined, all_listed.refined, all_listed.agreement) == (69, 69, 1)
    assert 1 <= (one.refined or 0) < 69
    assert (one.speedup or 0) > 0


@pytest.mark.parametrize(
    ("backends", "precisions", "expected"),
    [
        (["auto"], None, ["onnxruntime fp32", "onnxruntime fp16"]),
        (["auto"], ["bf16"], ["openvino bf16"]),
        (["all"], ["fp32"], ["onnxruntime fp32", "openvino fp32"]),
        (
            ["all", "onnxruntime"],
            None,
            ["onnxruntime fp32", "onnxruntime fp16", "openvino fp32", "openvino fp16", "openvino bf16"],
        ),
    ],
)
def test_what_auto_and_all_run(
    small_bundle: Path, backends: list[str], precisions: list[str] | None, expected: list[str]
) -> None:
    runs = accuracy.engine_runs(Bundle.open(small_bundle), backends, precisions)
    assert [" ".join(run) for run in runs] == expected


def test_built_engines_run_in_the_precisions_that_they_were_built_in(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(small_bundle)
    engines = [
        SimpleNamespace(key=SimpleNamespace(stage=stage.name, backend="tensorrt", graph=graph_hash(bundle, stage, p)))
        for stage in bundle.manifest.stages
        for p in (("fp16", "fp32") if stage.name != "decoder" else ("fp16",))
    ]
    manifest = bundle.manifest.model_copy(update={"engines": tuple(engines)})
    built = SimpleNamespace(root=bundle.root, manifest=manifest, graph_name=bundle.graph_name)
    built.fingerprint = bundle.fingerprint
    assert accuracy.precisions_of(built, "tensorrt") == ["fp16"]
    assert accuracy.precisions_of(bundle, "tensorrt") == ["fp32", "fp16"]
    monkeypatch.setattr("runtime.engines.best_backend", lambda *_: ("tensorrt", "fp16"))
    assert accuracy.libraries(built, "auto") == ["tensorrt"]
    assert accuracy.libraries(built, "all") == ["onnxruntime", "openvino", "tensorrt"]


def test_bundles_are_compared_with_the_first(small_bundle: Path, bundle_copy: Path, tmp_path: Path) -> None:
    done = run(
        *("--bundle", small_bundle, "--bundle", bundle_copy, "--scenes", "1", "--size", "96", "--no-torch"),
        *("--engine", "fp32", "--threads", "1", f"--out={tmp_path / 'out'}"),
    )
    assert done.returncode == 0, done.stderr
    table = done.stderr[done.stderr.index("mIoU by bundle") :]
    assert table.count("96 px, 2x2 crops of 64 px, with refinement") == 2
    assert "(+0.0)" in table


def test_a_folder_from_end_to_end(small_bundle: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("wall\nfloor")
    for name, values in (("a", [[0, 0, 0, 0], [0, 0, 0, 0]]), ("b", [[0, 0, 1, 1], [255, 0, 1, 1]])):
        Image.new("RGB", (4, 2), (90, 80, 70)).save(root / "images" / f"{name}.jpg")
        Image.fromarray(np.array(values, np.uint8)).save(root / "labels" / f"{name}.png")
    done = run(
        *("--bundle", small_bundle, "--data", root, "--engine", "fp32", "--no-torch", "--threads", "1"),
        *("--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    [data] = tmp_path.glob("out/cpu-*/small-mine-accuracy.json")
    content = json.loads(data.read_text())
    [one] = content["scores"]
    assert content["reference"] == "onnxruntime fp32"
    assert content["without_torch"] == "--no-torch was given"
    assert set(one["miou"]) == {"all"}
    assert set(one["class_iou"]) == {"wall", "floor"}
    assert str(tmp_path) not in data.read_text()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--engine", "int3"], "expected one of fp32, fp16, bf16"),
        (["--backend", "onnxruntime", "--engine", "bf16"], "no bf16 arithmetic"),
        (["--split", "exam"], "split must be one of train, val, test, hard"),
        (["--data", "nowhere"], "classes.txt does not exist"),
        (["--data", ".", "--split", "val"], "leave them out with --data"),
        (["--weights", "."], "built with random weights"),
    ],
)
def test_unusable_options(small_bundle: Path, tmp_path: Path, option: list[str], message: str) -> None:
    assert message in error_line(run("--bundle", small_bundle, "--out", tmp_path, *option), 2)
    assert not list(tmp_path.iterdir())


def test_remarks_tell_what_was_really_computed() -> None:
    one = {"views": "both", "miou": {}, "pixel_accuracy": 1, "boundary_f": 1, "agreement": 1, "seconds": 1}
    scores = [
        accuracy_record.Score.model_validate({**one, "contestant": name, "precision": {"a": how}, "class_iou": {}})
        for name, how in (("x fp32", "fp32"), ("y bf16", "bf16"), ("z bf16", "fp32 (no bf16 here)"))
    ]
    [remark] = accuracy_record.caveats(scores, random_weights=False)
    assert remark == "z bf16: this CPU computes in fp32 (no bf16 here); real bf16 may lose more."


def test_precision_that_the_bundle_lacks(edit_manifest: Callable[..., Path], small_bundle: Path) -> None:
    stages = json.loads((small_bundle / MANIFEST).read_text())["stages"]
    for stage in stages:
        del stage["onnx"]["fp16"]
    done = run("--bundle", edit_manifest(stages=stages), "--engine", "fp16")
    assert "has graphs in fp32 only; build it with --engine fp16" in error_line(done, 2)


def test_two_bundles_of_one_name(small_bundle: Path) -> None:
    assert "two folders have the same name" in error_line(run("--bundle", small_bundle, "--bundle", small_bundle), 2)


def test_help_waits_for_no_library() -> None:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert time.perf_counter() - start < 5  # under 1 s on a quiet machine
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "numpy", "cv2", "onnxruntime", "matplotlib"}
