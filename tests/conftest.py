"""One small bundle for the whole suite, and what its tests share."""

from __future__ import annotations

import os

# Before OpenMP is loaded: threads that spin while they wait make torch and the kernels ten times slower on a
# busy machine with few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_models import CLASSES, small_request

from export.builder import build_bundle
from export.request import Build
from runtime.bundle import new_bundle
from runtime.segmenter import Segmenter


@pytest.fixture(scope="session")
def small_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Build]:
    target = tmp_path_factory.mktemp("bundles") / "small"
    runs = (("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("openvino", "fp32"))
    with new_bundle(target) as folder:
        build = build_bundle(small_request(halves=("fp16",), runs=runs), folder)
    return target, build


@pytest.fixture(scope="session")
def small_bundle(small_build: tuple[Path, Build]) -> Path:
    """A whole bundle in fp32 and fp16. Read only: tests that alter it take `bundle_copy`."""
    return small_build[0]


@pytest.fixture
def bundle_copy(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "copy"))


@pytest.fixture
def edit_manifest(bundle_copy: Path) -> Callable[..., Path]:
    """Replaces fields of the copied bundle's manifest: `edit_manifest(schema_version=2)`."""

    def edit(**fields: Any) -> Path:
        path = bundle_copy / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return bundle_copy

    return edit


@pytest.fixture(scope="module")
def segmenter(small_bundle: Path) -> Iterator[Segmenter]:
    """Shared by a module's tests; those that change its classes put them back or take `load`."""
    with pytest.warns(UserWarning, match="random weights"):
        opened = Segmenter.load(small_bundle, classes=list(CLASSES), cache_dir=None, threads=1)
    with opened:
        yield opened


@pytest.fixture
def load(small_bundle: Path) -> Iterator[Callable[..., Segmenter]]:
    """`Segmenter.load` of the small bundle, without a cache on disk, closed at the end of the test."""
    opened: list[Segmenter] = []

    def load_quietly(classes: Any = CLASSES, **options: Any) -> Segmenter:
        with pytest.warns(UserWarning, match="random weights"):
            opened.append(Segmenter.load(small_bundle, classes, **{"cache_dir": None, "threads": 1, **options}))
        return opened[-1]

    yield load_quietly
    for one in opened:
        one.close()
