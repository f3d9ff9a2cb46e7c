"""Class lists from every source, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from runtime.errors import InputError
from runtime.vocab import MAX_CLASSES, check_classes, read_classes


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_lists_and_strings() -> None:
    assert read_classes([" wall ", "floor", "chest, bureau"]) == ["wall", "floor", "chest, bureau"]
    assert read_classes(("wall",)) == ["wall"]
    assert read_classes("wall, floor ,red mug") == ["wall", "floor", "red mug"]
    assert read_classes("信号機") == ["信号機"]
    assert read_classes("x" * 5000) == ["x" * 5000]  # too long to ask the file system about


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "wall\nchest, bureau\n"),
        ("windows.TXT", "\ufeffwall\r\nchest, bureau\r\n"),
        ("list.json", '["wall", "chest, bureau"]'),
        ("object.json", '{"classes": ["wall", "chest, bureau"]}'),
        ("map.json", '{"1": "chest, bureau", "0": "wall"}'),
        ("no_suffix", "wall\nchest, bureau"),
    ],
)
def test_files(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode("utf-8"))
    assert read_classes(file) == read_classes(str(file)) == ["wall", "chest, bureau"]


def test_ids_of_a_map_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps({str(index): f"class {index}" for index in range(12)}))
    assert read_classes(file) == [f"class {index}" for index in range(12)]


def test_comment_sign_is_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# sign\nwall")
    assert read_classes(tmp_path / "a.txt") == ["# sign", "wall"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{]", "is not valid JSON"),
        ('"wall"', "must hold a list of names"),
        ("{}", "must hold a list of names"),
        ('{"1": "wall", "2": "floor"}', r"must be the ids 0 to 1, got '1', '2'; number them so"),
        ('{"wall": 0}', "must be the ids 0 to 0, got 'wall'"),
        ('{"0": "wall", "00": "floor"}', "must be the ids 0 to 1"),
        ('["wall", 7]', r"class 1 must be a string, got int \(7\)"),
        ("[]", "no class names given"),
    ],
)
def test_bad_json(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "classes.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_classes(file)


def test_bad_files(tmp_path: Path) -> None:
    for missing in (tmp_path / "absent", "absent.txt", "absent.JSON"):
        with pytest.raises(InputError, match=r"class list .*absent.* does not exist; expected a list of names"):
            read_classes(missing)
    with pytest.raises(InputError, match="cannot read class list"):
        read_classes(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="is no UTF-8 text"):
        read_classes(str(tmp_path / "photo.jpg"))


def test_other_types_are_named() -> None:
    with pytest.raises(InputError, match=r"classes must be a list of names, .*got dict"):
        read_classes({"wall": 0})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"class 1 must be a string, got NoneType \(None\)"):
        check_classes(["wall", None])


def test_blank_and_duplicate_names_are_dropped_and_named() -> None:
    with pytest.warns(UserWarning) as caught:
        assert check_classes(["wall", " ", "floor", "wall ", ""]) == ["wall", "floor"]
    assert [str(warning.message) for warning in caught] == [
        "dropped blank class names at positions 1, 4",
        "dropped duplicate class names: 'wall'",
    ]
    with pytest.warns(UserWarning, match="'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a' and 12 more"):
        check_classes(["a"] * 21)


@pytest.mark.parametrize("nothing", [[], ["", "  "], "", " , ,"])
def test_nothing_left(nothing: object) -> None:
    with pytest.raises(InputError, match="no class names given; expected a list"):
        read_classes(nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize("token", ["<|startoftext|>", "<|endoftext|>", "<|anything|>"])
def test_special_tokens_are_refused(token: str) -> None:
    with pytest.raises(InputError, match=r"class 1 \(.*\) holds the special token <\|.*\|>; remove it"):
        check_classes(["wall", f"red {token} mug"])


def test_how_many() -> None:
    assert len(check_classes([f"class {index}" for index in range(1000)])) == 1000
    assert len(check_classes([str(index) for index in range(MAX_CLASSES)])) == 65_534
    with pytest.raises(InputError, match="65535 classes given, at most 65534 are possible"):
        check_classes([str(index) for index in range(MAX_CLASSES + 1)])
