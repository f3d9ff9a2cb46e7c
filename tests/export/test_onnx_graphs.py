"""Graphs: what is refused, axes that are really dynamic, norms in one node, weights once, nothing private inside."""

from __future__ import annotations

import getpass
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from small_models import small_config
from torch import Tensor, nn

from export import onnx_graphs, stages
from export.random_weights import RandomWeights
from export.stages import Stage
from runtime.errors import ExportError
from runtime.manifest import TensorSpec
from runtime.rope import rope_tables

CONFIG = small_config()
TABLE = {stage.name: stage for stage in stages.stage_table(CONFIG, refinement=True)}
HALVES = sorted(set(TABLE) - {"text_encoder"})  # which is always fp32
GRAPHS = [*(f"{name}.fp32" for name in TABLE), *(f"{name}.fp16" for name in HALVES)]


def rope(grid: tuple[int, int]) -> dict[str, np.ndarray]:
    periods = stages.build_backbone(CONFIG).rope_embed.periods.tolist()
    return dict(zip(("rope_sin", "rope_cos"), rope_tables(periods, grid, 5), strict=True))


def random_inputs(stage: Stage, **axes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(sum(axes.values()))
    found = {}
    for spec in stage.inputs:
        shape = [axes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        if spec.dtype == "int64":
            found[spec.name] = rng.integers(1, 49406, shape)
        else:
            found[spec.name] = rng.standard_normal(shape).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    return {name: stage.build(RandomWeights()) for name, stage in TABLE.items()}


SIZES: list[tuple[str, dict[str, int]]] = [
    *(("text_encoder", {"classes": count}) for count in range(1, 21)),
    *(
        ("backbone", {"batch": batch, "height": side, "width": side, "tokens": 5 + (side // 16) ** 2})
        for side in (64, 96)
        for batch in range(1, 6)
    ),
    ("backbone", {"batch": 1, "height": 32, "width": 160, "tokens": 5 + 2 * 10}),
    *((name, {"classes": count}) for name in ("correlation", "refinement", "decoder") for count in (1, 2, 40, 300)),
    ("anyup", {}),
    ("sam_encoder", {}),
]


def described(value: str | dict[str, int]) -> str:
    return value if isinstance(value, str) else ",".join(map(str, value.values())) or "static"


@pytest.mark.parametrize(("name", "axes"), SIZES, ids=described)
def test_every_size_gives_what_torch_gives(
    name: str, axes: dict[str, int], small_bundle: Path, modules: dict[str, nn.Module]
) -> None:
    inputs = random_inputs(TABLE[name], **axes)
    if name == "backbone":
        inputs |= rope((axes["height"] // 16, axes["width"] // 16))
    session = onnxruntime.InferenceSession(small_bundle / "onnx" / f"{name}.fp32.onnx")
    found = session.run(None, inputs)
    with torch.inference_mode():
        expected = modules[name](**{key: torch.from_numpy(value) for key, value in inputs.items()})
    expected = (expected,) if isinstance(expected, Tensor) else expected
    for ours, official in zip(found, expected, strict=True):
        assert ours.shape == official.shape
        assert np.abs(ours - official.numpy()).max() < 1e-4 * max(1.0, float(official.abs().max()))


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_valid_and_of_one_opset(graph: str, small_bundle: Path) -> None:
    path = small_bundle / "onnx" / f"{graph}.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", onnx_graphs.OPSET)]
    assert not model.functions


@pytest.mark.parametrize("graph", GRAPHS)
def test_nothing_of_this_machine_is_inside(graph: str, small_bundle: Path) -> None:
    content = (small_bundle / "onnx" / f"{graph}.onnx").read_bytes()
    here = [str(Path(__file__).parents[2]), str(Path.home()), getpass.getuser() + "@", socket.gethostname()]
    for private in ("/work", "/tmp", "/home", "/root", "/opt", "site-packages", ".py", "stack_trace", *here):
        assert private.encode() not in content, private


@pytest.mark.parametrize(
    ("name", "precision"),
    [("text_encoder", "fp32"), *((n, p) for n in ("backbone", "sam_encoder", "refinement") for p in ("fp32", "fp16"))],
)
def test_every_norm_is_one_node(name: str, precision: str, small_bundle: Path, modules: dict[str, nn.Module]) -> None:
    norms = sum(isinstance(module, nn.LayerNorm) for module in modules[name].modules())
    model = onnx.load(small_bundle / "onnx" / f"{name}.{precision}.onnx", load_external_data=False)
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["LayerNormalization"] == norms > 0
    assert not set(counts) & set(onnx_graphs.FORBIDDEN)


@pytest.mark.parametrize(
    ("name", "precision", "width"),
    [
        ("text_encoder", "fp32", 4),
        ("backbone", "fp32", 4),
        ("backbone", "fp16", 2),
        ("sam_encoder", "fp32", 4),
        ("sam_encoder", "fp16", 2),
    ],
)
def test_weights_are_on_disk_once(
    name: str, precision: str, width: int, small_bundle: Path, modules: dict[str, nn.Module]
) -> None:
    path = small_bundle / "onnx" / f"{name}.{precision}.onnx"
    parameters = sum(parameter.numel() for parameter in modules[name].parameters())
    data = (path.parent / f"{path.name}.data").stat().st_size
    assert 0.97 < data / (parameters * width) < 1.04
    assert path.stat().st_size < 100_000
    external = {
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert external == {f"{path.name}.data"}


# --- lint


def model_with(op: str) -> ir.Model:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    node = ir.node(op, [x], metadata_props={"pkg.torch.onnx.name_scopes": "['blocks.3.norm1', 'pow']"})
    return ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}), ir_version=10)


@pytest.mark.parametrize("op", onnx_graphs.FORBIDDEN)
def test_forbidden_nodes_are_named_with_their_origin(op: str) -> None:
    with pytest.raises(ExportError) as caught:
        onnx_graphs.lint(model_with(op), "backbone")
    assert f"stage backbone: forbidden nodes 1x {op}; {op}: {onnx_graphs.FORBIDDEN[op]}" in str(caught.value)
    assert "blocks.3.norm1" in str(caught.value)


def test_forbidden_nodes_are_found_in_subgraphs() -> None:
    inner = model_with("NonZero").graph
    loop = ir.Node("", "SequenceMap", [], [ir.AttrGraph("body", inner)], num_outputs=1)
    model = ir.Model(ir.Graph([], loop.outputs, nodes=[loop], opset_imports={"": 20}), ir_version=10)
    with pytest.raises(ExportError, match="1x NonZero"):
        onnx_graphs.lint(model, "x")


def test_allowed_nodes_pass() -> None:
    onnx_graphs.lint(model_with("Sqrt"), "backbone")


class Power(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs() ** 2.5


class Sampled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        grid = x[None, :, :, None].expand(-1, -1, -1, 2)
        return torch.nn.functional.grid_sample(x[None, None, :, :], grid, align_corners=False)[0, 0]


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 4) * 2


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Conditional(nn.Module):
    """The exporter writes an If, with a graph for each branch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y + 1, (x,))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Conditional(), "forbidden nodes 1x If; If: control flow on data: TensorRT cannot capture it"),
        (Power(), "forbidden nodes 1x Pow; Pow: a LayerNorm that was taken apart"),
        (Sampled(), "forbidden nodes 1x GridSample"),
        (Fixed(), "axis rows of y was fixed to 3"),
        (Branching(), "torch.onnx.export failed"),
    ],
)
def test_what_must_not_be_exported(module: nn.Module, words: str, tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("rows", 4))
    stage = Stage("probe", (spec,), (TensorSpec(name="y", dtype="float32", shape=("rows", 4)),), lambda _: module)
    with pytest.raises(ExportError) as caught:
        onnx_graphs.export_graph(stage, module.eval(), {"x": torch.ones(3, 4)}, tmp_path / "x.onnx")
    assert "stage probe: " in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_specs_are_read_from_the_graph(small_bundle: Path) -> None:
    for graph in GRAPHS:
        model, stage = onnx_graphs.load(small_bundle / "onnx" / f"{graph}.onnx"), TABLE[graph.split(".")[0]]
        assert onnx_graphs.specs_of(model) == (stage.inputs, stage.outputs)
