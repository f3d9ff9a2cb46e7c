"""Bundles: whatever is wrong with one is said in one line with advice; a build replaces one whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.bundle import MANIFEST, Bundle, list_files, new_bundle, sha256
from runtime.errors import BundleError, OutputError

GRAPH = "onnx/decoder.fp32.onnx"
OTHER = "onnx/decoder.fp16.onnx"


def message(call: Callable[[], object]) -> str:
    with pytest.raises(BundleError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_bundle_opens(small_bundle: Path) -> None:
    bundle = Bundle.open(str(small_bundle))
    assert bundle.manifest.precisions == ("fp32", "fp16")
    assert bundle.manifest.random_weights
    assert bundle.onnx("decoder", "fp16") == small_bundle / OTHER
    assert bundle.tokenizer() == small_bundle / "tokenizer.json"


def test_every_file_is_listed_with_size_and_checksum(small_bundle: Path) -> None:
    files = Bundle.open(small_bundle).manifest.files
    on_disk = {path.relative_to(small_bundle).as_posix() for path in small_bundle.rglob("*") if path.is_file()}
    assert set(files) == on_disk - {MANIFEST}
    assert files == list_files(small_bundle)
    assert files[GRAPH].size == (small_bundle / GRAPH).stat().st_size
    assert len(files[GRAPH].sha256) == 64


def test_every_stage_names_its_inputs_as_the_graph_does(small_bundle: Path) -> None:
    import onnx

    for stage in Bundle.open(small_bundle).manifest.stages:
        for path in stage.onnx.values():
            graph = onnx.load(small_bundle / path, load_external_data=False).graph
            for specs, values in ((stage.inputs, graph.input), (stage.outputs, graph.output)):
                found = {
                    v.name: tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in values
                }
                assert found == {spec.name: spec.shape for spec in specs}


def test_a_missing_file(bundle_copy: Path) -> None:
    (bundle_copy / GRAPH).unlink()
    error = message(lambda: Bundle.open(bundle_copy))
    assert GRAPH in error
    assert "is missing" in error
    assert "build the bundle again" in error


def test_a_truncated_file(bundle_copy: Path) -> None:
    path = bundle_copy / f"{GRAPH}.data"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    error = message(lambda: Bundle.open(bundle_copy))
    assert f"{path} has {size - 1} bytes, expected {size} bytes; copy or build" in error


@pytest.mark.parametrize("name", [GRAPH, f"{GRAPH}.data", "tokenizer.json"])
def test_one_flipped_bit(name: str, bundle_copy: Path) -> None:
    path = bundle_copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    bundle = Bundle.open(bundle_copy)
    error = message(bundle.tokenizer if name == "tokenizer.json" else lambda: bundle.onnx("decoder", "fp32"))
    assert f"{path} was altered" in error
    assert "build the bundle again" in error


def test_swapped_files_of_equal_size(bundle_copy: Path) -> None:
    """Two files under each other's name, with sizes made equal so that only the checksum can tell."""
    names = (GRAPH, OTHER)
    content = [(bundle_copy / name).read_bytes() for name in names]
    longest = max(map(len, content))
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    for name, data in zip(names, content, strict=True):
        (bundle_copy / name).write_bytes(data.ljust(longest, b"\0"))
        manifest["files"][name] = {"size": longest, "sha256": sha256(bundle_copy / name)}
    (bundle_copy / MANIFEST).write_text(json.dumps(manifest))
    assert Bundle.open(bundle_copy).onnx("decoder", "fp32")
    first, second = (bundle_copy / name for name in names)
    first.rename(bundle_copy / "between")
    second.rename(first)
    (bundle_copy / "between").rename(second)
    bundle = Bundle.open(bundle_copy)
    for precision in ("fp32", "fp16"):
        assert "was altered" in message(lambda precision=precision: bundle.onnx("decoder", precision))


def test_a_newer_schema(edit_manifest: Callable[..., Path]) -> None:
    error = message(lambda: Bundle.open(edit_manifest(schema_version=2, a_field_of_the_future=1)))
    assert "schema version 2, this runtime reads up to 1; update" in error


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": "x"}', "{}", "\udcff"])
def test_a_damaged_manifest(text: str, bundle_copy: Path) -> None:
    (bundle_copy / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    error = message(lambda: Bundle.open(bundle_copy))
    assert f"{bundle_copy / MANIFEST} cannot be read" in error
    assert "build the bundle again" in error


@pytest.mark.parametrize(
    ("fields", "where"),
    [({"name": None}, "name"), ({"pipeline": {}}, "pipeline.geometry"), ({"surprise": 1}, "surprise")],
)
def test_a_manifest_that_does_not_fit_the_schema(
    fields: dict[str, object], where: str, edit_manifest: Callable[..., Path]
) -> None:
    error = message(lambda: Bundle.open(edit_manifest(**fields)))
    assert f"is not valid: {where}" in error
    assert "build the bundle again" in error


@pytest.mark.parametrize("kind", ["missing", "empty folder", "file", "folder in place of the manifest"])
def test_not_a_bundle(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("hello")
    elif kind != "missing":
        path.mkdir()
    if kind.endswith("manifest"):
        (path / MANIFEST).mkdir()
    error = message(lambda: Bundle.open(path))
    assert str(path) in error
    assert "build" in error


def test_a_precision_that_was_not_built(small_bundle: Path) -> None:
    error = message(lambda: Bundle.open(small_bundle).onnx("decoder", "bf16"))
    assert "no bf16 graph for stage decoder (it has fp32, fp16); build it with" in error


def test_a_file_that_the_manifest_does_not_list(small_bundle: Path) -> None:
    assert "not listed" in message(lambda: Bundle.open(small_bundle).verify("engines/x.plan"))


def test_fingerprint_depends_on_content_and_order(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    assert bundle.fingerprint(GRAPH, OTHER) == bundle.fingerprint(GRAPH, OTHER)
    assert len({bundle.fingerprint(GRAPH), bundle.fingerprint(OTHER), bundle.fingerprint(OTHER, GRAPH)}) == 3


# --- new_bundle


def fill(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    with new_bundle(target) as folder:
        fill(folder, "old")
    return target


def test_a_new_bundle_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with new_bundle(target) as folder:
        fill(folder, "new")
        assert not target.exists()
    assert (target / MANIFEST).read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["bundle"]


def test_a_rebuild_replaces_and_leaves_nothing_of_the_old(old: Path) -> None:
    (old / "stale").touch()
    with new_bundle(old) as folder:
        fill(folder, "new")
    assert (old / MANIFEST).read_text() == "new"
    assert not (old / "stale").exists()
    assert [path.name for path in old.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_build_leaves_the_old_bundle_and_nothing_else(error: type[BaseException], old: Path) -> None:
    with pytest.raises(error), new_bundle(old) as folder:
        fill(folder, "half")
        raise error
    assert (old / MANIFEST).read_text() == "old"
    assert [path.name for path in old.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("moved", [False, True])
def test_what_killed_builds_left_is_cleared_away(moved: bool, old: Path) -> None:
    """Also where one was killed between the two renames: the bundle that it had moved away comes back."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    partial = old.with_name(f".bundle.{ended.pid}.partial")
    partial.mkdir()
    if moved:
        old.replace(old.with_name(f".bundle.{ended.pid}.old"))
    running = old.with_name(f".bundle.{os.getppid()}.partial")
    running.mkdir()
    with pytest.raises(KeyboardInterrupt), new_bundle(old):
        raise KeyboardInterrupt
    assert sorted(path.name for path in old.parent.iterdir()) == sorted(["bundle", running.name])
    assert (old / MANIFEST).read_text() == "old"


def test_interrupted_between_the_two_renames(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), new_bundle(old) as folder:
        fill(folder, "new")
    assert (old / MANIFEST).read_text() == "old"
    assert [path.name for path in old.parent.iterdir()] == ["bundle"]


def test_a_target_that_cannot_be_replaced(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(self: Path, target: Path) -> Path:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(OutputError, match=r"bundle \(Device or resource busy\); name a new folder"), new_bundle(old):
        pass
    assert (old / MANIFEST).read_text() == "old"


@pytest.mark.parametrize("kind", ["file", "folder with content"])
def test_what_is_not_a_bundle_is_not_replaced(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    kept = target if kind == "file" else target / "thesis.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("precious")
    with pytest.raises(OutputError, match="is not a bundle"), new_bundle(target):
        pytest.fail("the build must not start")
    assert kept.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_may_become_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with new_bundle(tmp_path / "bundle") as folder:
        fill(folder, "new")
    assert (tmp_path / "bundle" / MANIFEST).exists()


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"cannot write a bundle to .*file/bundle"),
        new_bundle(tmp_path / "file" / "bundle"),
    ):
        pytest.fail("the build must not start")


def test_a_relative_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_bundle(Path("bundle")) as folder:
        fill(folder, "new")
    assert (tmp_path / "bundle" / MANIFEST).exists()


def test_a_moved_bundle_still_opens(bundle_copy: Path, tmp_path: Path) -> None:
    moved = shutil.move(bundle_copy, tmp_path / "elsewhere")
    assert Bundle.open(moved).onnx("backbone", "fp32").is_file()
