"""The fake device offers what cuda-core offers: a call that is not there would show on a GPU only."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

import fake_cuda
import numpy as np
import pytest

core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
graph = pytest.importorskip("cuda.core.graph", reason="this cuda-core has no graphs of its own")

PAIRS = [
    (fake_cuda.Device, core.Device),
    (fake_cuda.Stream, core.Stream),
    (fake_cuda.Event, core.Event),
    (fake_cuda.Buffer, core.Buffer),
    (fake_cuda.LegacyPinnedMemoryResource, core.LegacyPinnedMemoryResource),
    (fake_cuda.Capture, graph.GraphBuilder),
    (fake_cuda.Graph, graph.Graph),
]
OURS = {"advance", "enqueue", "add", "by_handle", "early", "live", "refuse", "entered"}  # of the fake alone


def offered(fake: type) -> list[str]:
    return [name for name in vars(fake) if not name.startswith("_") and name not in OURS]


@pytest.mark.parametrize(("fake", "real"), PAIRS, ids=lambda one: getattr(one, "__name__", ""))
def test_everything_is_there(fake: type, real: type) -> None:
    assert [name for name in offered(fake) if not hasattr(real, name)] == []


@pytest.mark.parametrize(("fake", "real"), PAIRS, ids=lambda one: getattr(one, "__name__", ""))
def test_arguments_have_the_same_names(fake: type, real: type) -> None:
    """As the signature or, for compiled methods, the first line of the docstring says."""
    for name in offered(fake):
        method = inspect.getattr_static(fake, name)
        if not callable(method) and not isinstance(method, staticmethod):
            continue
        parameters = list(inspect.signature(getattr(fake, name)).parameters.values())
        keywords = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
        said = (inspect.getdoc(getattr(real, name)) or "").split("\n")[0] + signature(getattr(real, name))
        assert all(re.search(rf"\b{keyword}\b", said) for keyword in keywords), (name, keywords, said)


def signature(method: Any) -> str:
    try:
        return str(inspect.signature(method))
    except (TypeError, ValueError):
        return ""


def test_views_of_other_libraries_arrays() -> None:
    utils: ModuleType = core.utils
    array = np.zeros((4, 5, 3), np.uint8)
    view = utils.StridedMemoryView.from_any_interface(array, stream_ptr=-1)
    assert (view.ptr, view.shape, view.strides, str(view.dtype)) == (array.ctypes.data, (4, 5, 3), (15, 3, 1), "uint8")
    assert hasattr(utils.StridedMemoryView, "from_buffer")
    assert hasattr(utils.StridedMemoryView, "__dlpack__")
