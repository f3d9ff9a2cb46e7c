"""Segmentation (validation, masks, areas, files) and the pictures made of it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import InputError, OutputError
from runtime.segmentation import Segmentation
from runtime.visualize import class_color, color_map, count_labels, overlay, palette

COMMON = ["wall", "floor", "ceiling", "door", "window", "chair", "table", "sofa", "bed", "person", "plant"]


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- Segmentation


def test_fields_and_no_class() -> None:
    result = Segmentation(np.zeros((2, 3), np.uint8), ["wall"])  # type: ignore[arg-type]
    assert (result.classes, result.timings, result.scores, result.no_class) == (("wall",), {}, None, 255)
    assert Segmentation(np.zeros((2, 3), np.uint16), ("wall",)).no_class == 65535
    with pytest.raises(AttributeError):
        result.classes = ("floor",)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("labels", "classes", "scores", "message"),
    [
        (np.zeros((2, 2), np.int64), 1, None, r"\(H, W\) uint8 or uint16, got \(2, 2\) int64"),
        (np.zeros((1, 2, 2), np.uint8), 1, None, r"got \(1, 2, 2\) uint8"),
        ([[0]], 1, None, "got list"),
        (np.zeros((2, 2), np.uint8), 0, None, "at least one name, got none"),
        (np.zeros((2, 2), np.uint8), 256, None, r"256 classes do not fit uint8 labels \(at most 255\)"),
        (
            np.full((2, 2), 3, np.uint8),
            3,
            None,
            "go up to 3, but there are 3 classes; expected 0 to 2, or 255",
        ),
        (np.array([[255, 9]], np.uint8), 3, None, "go up to 9"),
        (np.zeros((2, 2), np.uint8), 1, np.zeros((2, 3), np.float32), r"must be \(2, 2\) float32"),
        (np.zeros((2, 2), np.uint8), 1, np.zeros((2, 2)), r"got \(2, 2\) float64"),
    ],
)
def test_what_does_not_fit_is_refused(labels: object, classes: int, scores: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Segmentation(labels, tuple(map(str, range(classes))), {}, scores)  # type: ignore[arg-type]


def test_areas_and_mask() -> None:
    labels = np.array([[0, 2, 2, 2], [255, 255, 0, 255]], np.uint8)
    result = Segmentation(labels, ("wall", "floor", "mug"))
    assert list(result.areas().items()) == [("mug", 0.375), ("wall", 0.25), ("floor", 0.0)]
    assert result.mask("mug").dtype == np.bool_ and result.mask("mug").sum() == 3
    assert not result.mask("floor").any()
    with pytest.raises(InputError, match="no class 'wal' among the 3 of this result; did you mean 'wall'"):
        result.mask("wal")
    with pytest.raises(InputError, match=r"see result\.classes"):
        result.mask("zebra")


def test_counts_over_strips() -> None:
    labels = np.random.default_rng(0).integers(0, 700, (1000, 37)).astype(np.uint16)
    labels[3] = 65535
    np.testing.assert_array_equal(count_labels(labels, 700), [(labels == k).sum() for k in range(700)])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_survive_the_file(tmp_path: Path, dtype: type) -> None:
    labels = np.random.default_rng(0).integers(0, 200, (20, 30)).astype(dtype)
    labels[0] = np.iinfo(dtype).max
    Segmentation(labels, tuple(map(str, range(200)))).save_labels(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored).astype(dtype), labels)
    assert [file.name for file in tmp_path.iterdir()] == ["labels.png"]


def test_labels_that_cannot_be_written(tmp_path: Path) -> None:
    result = Segmentation(np.zeros((2, 2), np.uint8), ("wall",))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write labels to"):
        result.save_labels(tmp_path / "file" / "labels.png")
    with pytest.raises(OutputError, match=r"written as \.png"):
        result.save_labels(tmp_path / "labels.jpg")


# --- colours


def test_colours_are_the_same_in_every_process() -> None:
    code = f"from runtime.visualize import palette; print(palette({COMMON!r}).tolist())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{palette(COMMON).tolist()}\n"}


def test_colour_depends_on_the_name_alone() -> None:
    assert tuple(palette(["mug", "wall"])[1]) == tuple(palette(["wall"])[0]) == class_color(" Wall ")
    assert palette([]).shape == (0, 3) and palette(["信号機", "\ud83d"]).dtype == np.uint8


def test_colours_are_vivid_and_common_classes_stay_apart() -> None:
    colors = palette([f"class {index}" for index in range(2000)]).astype(int)
    assert (colors.max(1) - colors.min(1)).min() >= 50  # never near grey
    assert len(np.unique(colors, axis=0)) > 1950
    common = palette(COMMON).astype(int)
    for first, second in itertools.combinations(common, 2):
        assert np.linalg.norm(first - second) > 25


def test_color_map() -> None:
    painted = color_map(np.array([[0, 1, 255]], np.uint8), ["wall", "floor"])
    assert painted.shape == (1, 3, 3) and painted.dtype == np.uint8
    assert painted[0, :2].tolist() == palette(["wall", "floor"]).tolist()
    assert len(set(painted[0, 2].tolist())) == 1  # grey
    wide = Segmentation(np.array([[299, 65535]], np.uint16), tuple(map(str, range(300))))
    assert wide.color_map()[0, 0].tolist() == palette(["299"])[0].tolist()


# --- overlay


def test_overlay_blends_inside_and_is_solid_on_borders() -> None:
    labels = np.zeros((600, 40), np.uint8)  # taller than one strip
    labels[:, 20:] = 1
    labels[500:] = 255
    image = photo(600, 40)
    painted = overlay(image, labels, ["wall", "floor"], alpha=0.5, legend=False)
    wall, floor = palette(["wall", "floor"])
    assert painted.shape == image.shape and painted.dtype == np.uint8
    expected = (image[:490, :15].astype(float) + wall) / 2
    assert np.abs(painted[:490, :15] - expected).max() <= 1
    np.testing.assert_array_equal(painted[501:], image[501:])  # no class: bare
    solid = (painted[:490] == wall).all(-1) | (painted[:490] == floor).all(-1)
    assert (solid.sum(axis=1) >= 1).all(), "the border between the classes runs through every row"


def test_overlay_has_no_seam_between_strips() -> None:
    labels = (np.arange(700)[:, None] // 64 % 2 * np.ones((1, 30), int)).astype(np.uint8)  # borders on 256, 512
    image = np.full((700, 30, 3), 90, np.uint8)
    painted = overlay(image, labels, ["wall", "floor"], legend=False)
    solid = (painted[:, :, None] == palette(["wall", "floor"])).all(-1).any(-1).all(1)
    borders = np.flatnonzero(solid)
    assert set(range(64, 700, 64)) <= {*borders, *(borders + 1)}
    gaps = np.diff(borders)
    assert set(gaps[gaps > 2]) == {gaps.max()}


def test_overlay_extremes_of_alpha() -> None:
    labels, image = np.zeros((30, 30), np.uint8), photo(30, 30)
    np.testing.assert_array_equal(overlay(image, labels, ["wall"], alpha=0.0, legend=False), image)
    full = overlay(image, labels, ["wall"], alpha=1.0, legend=False)
    assert (full == palette(["wall"])[0]).all()
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="alpha must be between 0 and 1"):
            overlay(image, labels, ["wall"], alpha=alpha)


def test_overlay_refuses_what_does_not_fit() -> None:
    result = Segmentation(np.zeros((4, 5), np.uint8), ("wall",))
    for image in (photo(5, 4), photo(4, 5)[..., 0], photo(4, 5) / 255.0):
        with pytest.raises(InputError, match=r"image must be \(4, 5, 3\) uint8 RGB like the labels, got \("):
            result.overlay(image)
    assert result.overlay(Image.fromarray(photo(4, 5))).shape == (4, 5, 3)
    assert result.overlay(photo(4, 5)[:, ::-1, ::-1]).shape == (4, 5, 3)  # a view with negative strides


def legend_area(height: int, width: int, classes: int) -> np.ndarray:
    """Where a picture with a legend differs from the one without."""
    labels = (np.arange(height * width).reshape(height, width) * classes // (height * width)).astype(np.uint16)
    names = [f"class number {index}, a long name 信号機 \ud83d" for index in range(classes)]
    image = photo(height, width)
    with_legend = overlay(image, labels, names)
    assert with_legend.shape == image.shape
    return (with_legend != overlay(image, labels, names, legend=False)).any(-1)


@pytest.mark.parametrize("size", [(1, 1), (1, 600), (600, 1), (64, 64), (96, 96)])
def test_legend_is_left_out_of_small_pictures(size: tuple[int, int]) -> None:
    assert not legend_area(*size, classes=3).any()


@pytest.mark.parametrize("classes", [1, 2, 14, 15, 16, 300])
@pytest.mark.parametrize("size", [(200, 320), (512, 512), (1080, 1920)])
def test_legend_stays_in_its_corner(size: tuple[int, int], classes: int) -> None:
    area = legend_area(*size, classes=classes)
    rows, columns = np.flatnonzero(area.any(1)), np.flatnonzero(area.any(0))
    assert rows[0] > 0 and rows[-1] < 0.75 * size[0]
    assert columns[0] > 0 and columns[-1] < 0.45 * size[1]


def test_legend_lists_the_seen_classes_only() -> None:
    image, labels = photo(512, 512), np.zeros((512, 512), np.uint8)
    labels[:, 100:] = 1
    few = overlay(image, labels, ["wall", "floor"])
    np.testing.assert_array_equal(few, overlay(image, labels, ["wall", "floor", "mug", "cup"]))
    assert not np.array_equal(few, overlay(image, labels, ["wall", "floor"], legend=False))
    nothing = overlay(image, np.full((512, 512), 255, np.uint8), ["wall"])
    np.testing.assert_array_equal(nothing, image)


def test_8k_picture() -> None:
    labels = np.zeros((4320, 7680), np.uint8)
    labels[:, 4000:] = 1
    image = np.full((4320, 7680, 3), 120, np.uint8)
    assert overlay(image, labels, ["wall", "floor"]).shape == (4320, 7680, 3)
