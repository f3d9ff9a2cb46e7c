"""The accuracy benchmark: its metrics against arithmetic done by hand, its folder reader, views, its files."""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks import accuracy_record, confusion_chart
from benchmarks.datasets import Folder, Identity, Tabletop
from benchmarks.scene_vocabulary import SEEN, VOCABULARY
from benchmarks.segmentation_metrics import IGNORE, Boundaries, Confusion, SmallObjects, mean_of
from runtime.bundle import MANIFEST, Bundle, sha256
from runtime.engines import open_engine
from runtime.errors import InputError
from runtime.pipeline import Pipeline, Views

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "benchmarks/accuracy.py"]
Maker = Callable[..., Path]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120)


def error_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def labels(*rows: str) -> np.ndarray:
    """Digits are classes, "." is ignored."""
    return np.array([[IGNORE if letter == "." else int(letter) for letter in row] for row in rows], np.uint16)


# Metrics.


def test_iou_by_hand() -> None:
    """Class 0: 3 hits of 5; class 1: 2 of 4; class 2: only predicted; class 3: nowhere."""
    confusion = Confusion(4)
    confusion.add(labels("0000", "111."), labels("0001", "1022"))
    # 0: hits 3, true 4, predicted 4 -> 3/5. 1: hits 1, true 3, predicted 2 -> 1/4. 2: predicted 1 (one is ignored).
    np.testing.assert_allclose(confusion.ious(), [3 / 5, 1 / 4, 0, np.nan])
    assert mean_of(confusion.ious()) == pytest.approx((3 / 5 + 1 / 4) / 3)
    assert mean_of(confusion.ious(), [0, 3]) == pytest.approx(3 / 5)
    assert mean_of(confusion.ious(), [3]) is None
    assert confusion.accuracy() == pytest.approx(4 / 7)


def test_pixels_without_a_predicted_class_are_misses() -> None:
    confusion = Confusion(2)
    confusion.add(labels("0011"), np.array([[0, 255, 1, 1]], np.uint8))
    np.testing.assert_allclose(confusion.ious(), [0.5, 1])


def test_only_ignored_pixels() -> None:
    confusion = Confusion(2)
    confusion.add(labels("...."), labels("0101"))
    assert mean_of(confusion.ious()) is None
    assert confusion.accuracy() is None


maps = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 3, IGNORE]), st.integers(0, 4)),  # 4 is no class
    min_size=2,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(pixels=maps)
def test_iou_as_written_in_plain_python(pixels: list[tuple[int, int]]) -> None:
    confusion = Confusion(4)
    half = len(pixels) // 2  # two images accumulate
    for part in (pixels[:half], pixels[half:]):
        truth, predicted = np.array(part, np.uint16).reshape(-1, 1, 2).transpose(2, 0, 1)
        confusion.add(truth, predicted)
    counted = [(true, guess) for true, guess in pixels if true != IGNORE]
    for label, found in enumerate(confusion.ious()):
        both = sum(true == guess == label for true, guess in counted)
        either = sum(label in pair for pair in counted)
        assert found == pytest.approx(both / either) if either else np.isnan(found)


def square(left: int, top: int, side: int = 10, size: int = 40) -> np.ndarray:
    made = np.zeros((size, size), np.uint16)
    made[top : top + side, left : left + side] = 1
    return made


def boundary(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    found = Boundaries(2)
    found.add(truth, predicted)
    return found.scores()


def test_boundary_of_shifted_squares() -> None:
    truth = square(10, 10)
    np.testing.assert_allclose(boundary(truth, square(10, 10)), 1)
    np.testing.assert_allclose(boundary(truth, square(12, 12)), 1)  # within the 2 px
    # Shifted by 4 to the right, of 36 outline pixels 20 have a partner: 8 of 10 in the top and the bottom row, no
    # pixel of the left side, and 2 at either end of the right side (they are near the other's rows). So both ways.
    assert boundary(truth, square(14, 10))[1] == pytest.approx(20 / 36)
    assert boundary(truth, square(26, 26))[1] == 0
    steps = [boundary(truth, square(10 + shift, 10))[1] for shift in range(3, 12)]
    assert steps == sorted(steps, reverse=True)


def test_boundary_as_written_in_plain_python() -> None:
    rng = np.random.default_rng(3)
    truth, predicted = (np.kron(rng.integers(0, 2, (5, 5)), np.ones((4, 4))).astype(np.uint16) for _ in range(2))

    def outline(mask: np.ndarray) -> list[tuple[int, int]]:
        side = len(mask)
        near = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        return [
            (y, x)
            for y, x in np.argwhere(mask)
            if any(0 <= y + a < side and 0 <= x + b < side and not mask[y + a, x + b] for a, b in near)
        ]

    def met(ours: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> float:
        return float(np.mean([any(max(abs(y - v), abs(x - u)) <= 2 for v, u in theirs) for y, x in ours]))

    for label, found in enumerate(boundary(truth, predicted)):
        true, guess = outline(truth == label), outline(predicted == label)
        precision, recall = met(guess, true), met(true, guess)
        assert found == pytest.approx(2 * precision * recall / (precision + recall))


def test_boundary_of_absent_ignored_and_missed_classes() -> None:
    whole = np.zeros((20, 20), np.uint16)
    assert np.isnan(boundary(whole, whole)).all()  # no outline anywhere: the edge of the image is none
    assert boundary(square(5, 5, 6, 20), whole)[1] == 0
    half = whole.copy()
    half[:, 10:] = IGNORE
    assert np.isnan(boundary(half, square(10, 0, 10, 20))).all()  # nor is the edge of what is ignored


def test_small_objects_are_looked_at_nearby_only() -> None:
    truth = square(10, 10, 6)
    predicted = truth.copy()
    predicted[10:16, 10] = 0  # 6 of 36 pixels missed
    predicted[12, 17:19] = 1  # 2 too many, within 4 px of the box
    predicted[30:40, 30:40] = 1  # far away
    small = SmallObjects(3)
    small.add(truth, predicted, [(1, (10, 10, 16, 16))])
    assert mean_of(small.ious()) == pytest.approx(30 / 38)
    assert small.objects == 1
    small.add(truth, np.zeros_like(truth), [(1, (10, 10, 16, 16))])
    assert mean_of(small.ious()) == pytest.approx(30 / (38 + 36))
    corner = SmallObjects(3)
    corner.add(square(0, 0, 3), square(0, 0, 3), [(1, (0, 0, 3, 3))])  # the widened box leaves the image
    assert mean_of(corner.ious()) == 1


# Data.


def test_tabletop_names_its_groups_and_small_objects() -> None:
    scenes = Tabletop("hard", 6, 160)
    assert sorted(i for group in scenes.groups.values() for i in group) == list(range(len(VOCABULARY)))
    assert [VOCABULARY[i] for i in scenes.groups["seen pairs"]] == list(SEEN)
    samples = list(scenes)
    assert [sample.name for sample in samples] == [f"hard {seed}" for seed in range(6)]
    small = [(sample, label, box) for sample in samples for label, box in sample.small]
    assert small
    for sample, label, (left, top, right, bottom) in small:
        assert max(right - left, bottom - top) < 16
        assert (sample.truth[top:bottom, left:right] == label).any()


@pytest.fixture
def folder(tmp_path: Path) -> Maker:
    """A folder of pictures: classes.txt, and one label picture each, as given."""

    def make(classes: str | None, **pictures: Image.Image | None) -> Path:
        root = tmp_path / "mine"
        for name in ("images", "labels"):
            (root / name).mkdir(parents=True)
        if classes is not None:
            (root / "classes.txt").write_text(classes, encoding="utf-8")
        for name, picture in pictures.items():
            Image.new("RGB", (4, 2), (90, 80, 70)).save(root / "images" / f"{name}.jpg")
            if picture is not None:
                picture.save(root / "labels" / f"{name}.png")
        return root

    return make


def grey(values: Any, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(values, dtype))


def test_folder_with_every_kind_of_label(folder: Maker) -> None:
    values = [[0, 1, 2, 0], [2, 2, 1, 1]]
    palette = grey(values).convert("P")
    palette.putdata(np.ravel(values).tolist())
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    deep = np.array(values, np.uint16)
    deep[0, 3] = 65535
    shallow = np.array(values, np.uint8)
    shallow[0, 3] = 255
    root = folder("wall\nfloor\nred mug\n", a=grey(shallow), b=grey(deep, np.uint16), c=palette)
    read = Folder(root)
    assert read.classes == ("wall", "floor", "red mug")
    first, second, third = (sample.truth for sample in read)
    np.testing.assert_array_equal(first, [[0, 1, 2, IGNORE], [2, 2, 1, 1]])
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(third, values)
    assert next(iter(read)).image.shape == (2, 4, 3)
    assert len(list(Folder(root, 2))) == 2
    assert read.identity == Identity(name="mine", images=3, classes=3)


def test_an_empty_line_ignores_its_label(folder: Maker) -> None:
    read = Folder(folder("\nwall\n\nfloor\n\n\n", a=grey([[0, 1, 2, 3], [1, 1, 3, 255]])))
    assert read.classes == ("wall", "floor")
    expected = [[IGNORE, 0, IGNORE, 1], [0, 0, 1, IGNORE]]
    np.testing.assert_array_equal(next(iter(read)).truth, expected)


def test_in_16_bits_255_is_a_class(folder: Maker) -> None:
    root = folder("\n".join(f"thing {i}" for i in range(300)), a=grey(np.full((2, 4), 255), np.uint16))
    assert (next(iter(Folder(root))).truth == 255).all()


GOOD = grey(np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("classes", "picture", "message"),
    [
        (None, GOOD, r"classes\.txt does not exist; expected images/"),
        ("\n\n", GOOD, "holds no names"),
        ("wall\nwall", GOOD, "names 'wall' twice"),
        ("wall", None, r"image a\.jpg has no label .*a\.png"),
        ("wall", grey(np.zeros((4, 2))), r"is 2x4, its image 4x2"),
        ("wall\nfloor", grey(np.full((2, 4), 2)), r"holds 2, but classes\.txt has 2 lines; expected 0 to 1, or 255"),
        ("wall", Image.new("RGB", (4, 2)), "is a RGB picture; expected 8-bit or 16-bit"),
    ],
)
def test_folder_errors(folder: Maker, classes: str | None, picture: Image.Image | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Folder(folder(classes, a=picture))


def test_folder_without_pictures_or_with_damaged_ones(folder: Maker) -> None:
    root = folder("wall", a=GOOD)
    whole = (root / "labels" / "a.png").read_bytes()
    (root / "labels" / "a.png").write_bytes(whole[:40])
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        Folder(root)
    (root / "images" / "a.jpg").unlink()
    with pytest.raises(InputError, match="holds no pictures"):
        Folder(root)


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


def test_a_folder_from_end_to_end(small_bundle: Path, tmp_path: Path, folder: Maker) -> None:
    root = folder("wall\nfloor", a=GOOD, b=grey([[0, 0, 1, 1], [255, 0, 1, 1]]))
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
