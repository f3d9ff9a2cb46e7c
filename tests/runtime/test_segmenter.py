"""The public face: labels, class changes, threads, futures, streams, and the life of a Segmenter."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_models import CLASSES, random_photo

import runtime.engines
import runtime.segmenter
from runtime import Segmentation, Segmenter
from runtime.errors import BundleError, EngineError, InputError

ROOT = Path(__file__).parents[2]
Load = Callable[..., Segmenter]


@pytest.fixture
def opened_graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages whose engines were opened, in order."""
    names: list[str] = []
    real = runtime.engines.open_stage

    def counting(bundle: Any, stage: str, *rest: Any) -> Any:
        names.append(stage)
        return real(bundle, stage, *rest)

    monkeypatch.setattr(runtime.segmenter, "open_stage", counting)  # the text encoder's
    monkeypatch.setattr(runtime.engines, "open_stage", counting)  # those of a frame
    return names


def same(first: Segmentation, second: Segmentation) -> bool:
    return np.array_equal(first.labels, second.labels)


# --- results


def test_a_result(segmenter: Segmenter) -> None:
    photo = random_photo(37, 61)
    result = segmenter(photo)
    assert result.labels.shape == (37, 61)
    assert result.labels.dtype == np.uint8
    assert len(np.unique(result.labels)) > 1
    assert result.classes == segmenter.classes == CLASSES
    assert result.scores is not None
    assert result.scores.dtype == np.float32
    assert result.scores.shape == (37, 61)
    assert 0 < result.scores.min() <= result.scores.max() < 1
    stages = {"preprocess", "backbone crops", "backbone full", "anyup", "correlation", "sam_encoder", "refinement"}
    assert stages <= set(result.timings)
    assert result.timings["total"] >= max(result.timings.values()) > 0
    assert result.overlay(photo).shape == photo.shape


def test_the_same_photo_gives_the_same_result(segmenter: Segmenter) -> None:
    photo = random_photo()
    first, other, again = (segmenter(random_photo(seed=seed)) for seed in (0, 1, 0))
    assert same(first, again)
    assert np.array_equal(first.scores, again.scores)  # type: ignore[arg-type]
    assert not same(first, other)
    assert segmenter(photo, scores=False).scores is None
    assert same(segmenter(photo, scores=False), first)


def test_a_list_is_a_batch(segmenter: Segmenter) -> None:
    photos = [random_photo(20, 30, seed) for seed in range(3)]
    results = segmenter(photos)
    assert isinstance(results, list)
    assert [same(result, segmenter(photo)) for result, photo in zip(results, photos, strict=True)] == [True] * 3
    assert not same(results[0], results[1])
    assert segmenter([]) == []


@pytest.mark.parametrize(("count", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (1000, np.uint16)])
def test_label_type(count: int, dtype: type, load: Load) -> None:
    names = [f"class {i}" for i in range(count)]
    segmenter = load(None)
    text = np.random.default_rng(0).standard_normal((count, 2, 192)).astype(np.float32)
    segmenter._embedder.embed = lambda names: text / np.linalg.norm(text, axis=-1, keepdims=True)  # type: ignore[method-assign]
    segmenter.set_classes(names)
    result = segmenter(random_photo(24, 24))
    assert result.labels.dtype == dtype
    assert result.labels.max() < count
    assert len(result.classes) == count


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (10_000, 30), (4320, 7680)], ids=str)
def test_sizes(shape: tuple[int, int], segmenter: Segmenter) -> None:
    result = segmenter(np.full((*shape, 3), 90, np.uint8), scores=False)
    assert result.labels.shape == shape


@pytest.mark.parametrize(("backend", "precision"), [("onnxruntime", "fp16"), ("openvino", "fp32"), ("openvino", None)])
def test_other_engines_agree(backend: str, precision: str | None, segmenter: Segmenter, load: Load) -> None:
    photo = random_photo()
    other = load(backend=backend, precision=precision)
    found, expected = other(photo), segmenter(photo)
    assert np.abs(found.scores - expected.scores).max() < 0.01  # type: ignore[operator]
    # Random weights leave the classes close together: where a CPU really computes in bf16, a quarter changes places.
    assert np.mean(found.labels == expected.labels) > (0.8 if precision else 0.6)
    assert np.mean(other(random_photo(seed=1)).labels == expected.labels) < 0.5
    assert set(other.precision) == set(segmenter.precision)
    if precision:
        assert {said[:4] for said in other.precision.values()} == {precision}


# --- images


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda photo: photo[::-1].copy()[::-1],
        lambda photo: np.asfortranarray(photo),
        lambda photo: np.repeat(photo, 2, axis=1)[:, ::2],
        lambda photo: __import__("torch").from_numpy(photo),
    ],
    ids=["PIL", "reversed rows", "Fortran order", "every other column", "torch tensor"],
)
def test_the_same_picture_in_another_wrapping(convert: Callable[..., Any], segmenter: Segmenter) -> None:
    assert same(segmenter(convert(random_photo())), segmenter(random_photo()))


def test_read_only_photo(segmenter: Segmenter) -> None:
    photo = random_photo()
    photo.flags.writeable = False
    assert same(segmenter(photo), segmenter(random_photo()))


def test_bgr(segmenter: Segmenter, load: Load) -> None:
    photo = random_photo()
    expected, bgr = segmenter(photo), photo[..., ::-1]
    assert same(segmenter(bgr, color="bgr"), expected)
    assert not same(segmenter(bgr), expected)
    opened_as_bgr = load(color="bgr")
    assert same(opened_as_bgr(bgr), expected)
    assert same(opened_as_bgr(photo, color="rgb"), expected)
    assert same(opened_as_bgr(Image.fromarray(photo)), expected)
    assert same(next(opened_as_bgr.stream([bgr])), expected)


@pytest.mark.parametrize("color", ["BGR", "", "grey"])
def test_unknown_color(color: str, segmenter: Segmenter, small_bundle: Path) -> None:
    with pytest.raises(InputError, match=f"color is {color!r}; expected 'rgb' or 'bgr'"):
        Segmenter.load(small_bundle, color=color)
    if color:
        with pytest.raises(InputError, match="expected 'rgb' or 'bgr'"):
            segmenter(random_photo(), color=color)


# --- classes


def test_only_new_names_are_encoded(load: Load, opened_graphs: list[str]) -> None:
    segmenter = load(["wall", "floor"])
    assert opened_graphs.count("text_encoder") == 1
    others = len(opened_graphs)
    before = segmenter(random_photo())
    segmenter.set_classes(["floor", "wall"])
    assert len(opened_graphs) == others
    swapped = segmenter(random_photo())
    assert swapped.classes == ("floor", "wall")
    assert np.mean(swapped.labels == 1 - before.labels) > 0.999
    segmenter.set_classes(["floor", "cup"])
    assert opened_graphs[others:] == ["text_encoder"]


def test_embeddings_on_disk_serve_the_next_process(load: Load, opened_graphs: list[str], tmp_path: Path) -> None:
    first = load(cache_dir=tmp_path)
    assert "text_encoder" in opened_graphs
    assert len(list(tmp_path.glob("*.npz"))) == len(CLASSES)
    opened_graphs.clear()
    second = load(cache_dir=tmp_path)
    assert "text_encoder" not in opened_graphs
    assert same(first(random_photo()), second(random_photo()))
    for other in ({"precision": "fp16"}, {"backend": "openvino", "precision": "fp32"}):  # text is always fp32
        opened_graphs.clear()
        load(cache_dir=tmp_path, **other)
        assert opened_graphs and "text_encoder" not in opened_graphs


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ([], "no class names given"),
        ("", "no class names given"),
        ([" ", ""], "no class names given"),
        (["wall", "<|endoftext|>"], "class 1 .* holds the special token"),
        (["word " * 90], "class 'word word .* makes a prompt of 9. tokens, the text encoder takes 77"),
        (["wall", 3], "class 1 must be a string, got int"),
        (3, "classes must be"),
        (Path("nowhere.txt"), "class list nowhere.txt does not exist"),
    ],
)
def test_bad_classes_change_nothing(classes: Any, words: str, segmenter: Segmenter) -> None:
    before = segmenter(random_photo())
    with pytest.raises(InputError, match=words):
        segmenter.set_classes(classes)
    assert segmenter.classes == CLASSES
    assert same(segmenter(random_photo()), before)


def test_duplicate_and_blank_names_are_dropped_with_a_warning(load: Load) -> None:
    segmenter = load(None)
    with pytest.warns(UserWarning) as caught:
        segmenter.set_classes(["wall", "", "floor", "wall "])
    assert sorted(str(warning.message) for warning in caught) == [
        "dropped blank class names at positions 1",
        "dropped duplicate class names: 'wall'",
    ]
    assert segmenter.classes == ("wall", "floor")


def test_without_classes(load: Load) -> None:
    with pytest.raises(InputError, match=r"no classes are set; call set_classes"):
        load(None)(random_photo())


# --- loading and closing


def test_a_fork_is_refused(segmenter: Segmenter) -> None:
    """The engines' threads are not in the child: it would wait for them for ever."""
    here, there = multiprocessing.Pipe()

    def child() -> None:
        try:
            segmenter(random_photo())
        except EngineError as error:
            there.send(str(error))
        segmenter.close()  # leaves the parent's engines alone
        there.send("closed")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    said = [here.recv() for _ in range(2) if here.poll(60)]
    process.join(timeout=60)
    assert said[1:] == ["closed"]
    assert "loaded before a fork" in said[0]
    assert segmenter(random_photo()).labels.shape == (48, 64)


def test_closed(load: Load) -> None:
    segmenter = load()
    stream = segmenter.stream([random_photo()] * 3)
    next(stream)
    queued = [segmenter.submit(random_photo()) for _ in range(4)]
    segmenter.close()
    assert [future.done() for future in queued] == [True] * 4
    assert queued[-1].result().labels.shape == (48, 64)
    for call in (
        lambda: segmenter(random_photo()),
        lambda: segmenter.submit(random_photo()),
        lambda: segmenter.set_classes(["wall"]),
        lambda: next(stream),
    ):
        with pytest.raises(EngineError, match="this Segmenter is closed; load the bundle again"):
            call()
    segmenter.close()


def test_context_manager(load: Load) -> None:
    with load() as segmenter:
        segmenter(random_photo())
    with pytest.raises(EngineError, match="closed"):
        segmenter(random_photo())


def test_random_weights_are_warned_of(small_bundle: Path) -> None:
    with pytest.warns(
        UserWarning, match="random weights: it shows shapes and speed, its labels mean nothing"
    ) as caught:
        Segmenter.load(small_bundle, cache_dir=None).close()
    assert caught[0].filename == __file__


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_missing_engine_library(backend: str, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.engines.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning), pytest.raises(EngineError, match=f"pip install {backend}"):
        Segmenter.load(small_bundle, backend=backend)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"backend": "tensorflow"}, "backend is 'tensorflow'"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"classes": []}, "no class names given"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*random weights")
def test_bad_options(options: dict[str, Any], words: str, small_bundle: Path) -> None:
    with pytest.raises(InputError, match=words):
        Segmenter.load(small_bundle, **options)


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_an_altered_graph_is_not_loaded(bundle_copy: Path) -> None:
    path = bundle_copy / "onnx" / "sam_encoder.fp32.onnx.data"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BundleError, match=r"sam_encoder\.fp32\.onnx\.data was altered"):
        Segmenter.load(bundle_copy)


def test_a_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Segmenter.load(tmp_path / "nowhere")


def test_loading_and_segmenting_needs_no_torch(small_bundle: Path) -> None:
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
import numpy
from runtime import Segmenter
with Segmenter.load({str(small_bundle)!r}, classes=["wall", "floor"], cache_dir=None) as segmenter:
    segmenter(numpy.zeros((8, 8, 3), numpy.uint8))
print([name for name in ("torch", "export", "onnx", "onnxscript", "torchvision", "openvino") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
