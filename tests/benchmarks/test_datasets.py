"""Labelled pictures: Tabletop scenes, and folders with every kind of label file and mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import Folder, Identity, Tabletop
from benchmarks.scene_vocabulary import SEEN, VOCABULARY
from benchmarks.segmentation_metrics import IGNORE
from runtime.errors import InputError

Maker = Callable[..., Path]


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
