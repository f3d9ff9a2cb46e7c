"""AnyUp: golden files, the parts that replace official ones, loading errors, ONNX."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import golden_anyup
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from golden_case import GoldenCase
from torch import Tensor

from export.checkpoints import load_state
from export.models.anyup import AnyUp, Encoder, LearnedFeatureUnification
from export.models.anyup_tables import BLOCKED, AveragePool, Rope, WindowMask, window
from runtime.errors import InputError, WeightsError

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("anyup*.safetensors"))
ATTENTION = "cross_decode.cross_attn.attention."


def official_state(anyup: AnyUp) -> dict[str, Tensor]:
    """Random weights under the keys and shapes of an official file."""
    generator = torch.Generator().manual_seed(5)
    state = {key: torch.randn(value.shape, generator=generator) * 0.3 for key, value in anyup.state_dict().items()}
    dim = anyup.rope.freqs.shape[1]
    state[f"{ATTENTION}in_proj_weight"] = torch.randn(3 * dim, dim, generator=generator)
    state[f"{ATTENTION}in_proj_bias"] = torch.randn(3 * dim, generator=generator)
    state[f"{ATTENTION}out_proj.weight"] = torch.randn(dim, dim, generator=generator)
    state[f"{ATTENTION}out_proj.bias"] = torch.randn(dim, generator=generator)
    return state


def tiny(**options: object) -> AnyUp:
    """16 channels, image 32x48, features 4x6."""
    sizes: dict[str, object] = {"image_size": (32, 48), "feature_size": (4, 6), "qk_dim": 16, "num_heads": 2}
    anyup = AnyUp(**{**sizes, **options})  # type: ignore[arg-type]
    load_state(anyup, official_state(anyup), "random")
    return anyup


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    case = GoldenCase.read(path)
    found = golden_anyup.run(case)
    errors = {
        name: (found[name].double() - expected.double()).abs().max().item() for name, expected in case.outputs.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    print(f"{case.name}: worst {errors[worst]:.1e} in {worst}")
    assert errors[worst] <= 2e-4, worst


@pytest.mark.parametrize(("outputs", "inputs", "ratio"), [(40, 40, 0.1), (24, 24, 0.1), (7, 9, 0.25), (64, 5, 1)])
def test_window_is_the_box_around_each_query(outputs: int, inputs: int, ratio: float) -> None:
    allowed = window(outputs, inputs, ratio)
    for query in range(outputs):
        centre = (query + 0.5) / outputs
        first = math.floor(max(centre - ratio, 0) * inputs + 1e-6)
        end = math.ceil(min(centre + ratio, 1) * inputs - 1e-6)
        assert allowed[query].nonzero().flatten().tolist() == list(range(first, end))


def test_window_of_production_size_is_nine_by_nine() -> None:
    mask = WindowMask((40, 40), (40, 40), 0.1)(0, 40)
    allowed = (mask > BLOCKED).sum(dim=1).reshape(40, 40)
    assert allowed[20, 20] == 81
    assert allowed[0, 0] == 25
    assert set(mask.unique().tolist()) == {0.0, BLOCKED, 2 * BLOCKED}


def test_window_follows_fp32_rounding_where_the_edge_is_a_tie() -> None:
    """Every edge of a 15-wide window falls on a key's border; in exact arithmetic it would be symmetric."""
    widths = window(15, 15, 0.1).sum(dim=1).tolist()
    assert (widths[:5], widths[-2:]) == ([2, 3, 3, 4, 3], [4, 3])


@pytest.mark.parametrize(
    ("source", "target"), [((64, 96), (4, 6)), ((40, 60), (3, 4)), ((40, 60), (5, 7)), ((6, 8), (12, 20))]
)
def test_average_pool_is_adaptive(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *source)
    torch.testing.assert_close(AveragePool(source, target)(x), F.adaptive_avg_pool2d(x, target))


def test_encoder_pools_before_its_last_convolution() -> None:
    torch.manual_seed(0)
    pool = AveragePool((32, 48), (4, 6))
    encoder = Encoder(torch.nn.Conv2d(3, 16, 1), 16, 16)
    x = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(encoder(x, pool), pool(encoder(x)), atol=1e-6, rtol=0)


def test_rope_is_the_product_of_all_frequencies_and_coordinates() -> None:
    rope = Rope(8, (5, 7))
    freqs = torch.randn(2, 8) * 3
    rope.load_state_dict({"freqs": freqs})
    x = torch.randn(2, 8, 5, 7)
    angle = torch.einsum("nd,dc->cn", torch.cartesian_prod(*rope.coordinates()), freqs).reshape(8, 5, 7)
    turned = torch.cat([-x[:, 4:], x[:, :4]], dim=1)
    torch.testing.assert_close(rope(x), x * angle.cos() + turned * angle.sin(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("filters_at_once", [1, 3, 8, 16])
def test_unification_by_blocks_of_filters_is_the_literal_one(
    filters_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    unification = LearnedFeatureUnification(16, 5, (6, 7))
    features = F.normalize(torch.randn(2, 48, 6, 7), dim=1)
    monkeypatch.setattr("export.models.anyup.RESPONSES_AT_ONCE", filters_at_once * features.numel())
    assert (unification(features) - unification.literal(features)).abs().max() <= 1e-6


def test_unification_of_other_channel_counts() -> None:
    unification = LearnedFeatureUnification(16, 5, (4, 4))
    features = torch.randn(1, 24, 4, 4)
    assert torch.equal(unification(features), unification.literal(features))
    torch.testing.assert_close(unification(features).sum(dim=1), torch.ones(1, 4, 4))


def test_outputs_depend_on_channel_order() -> None:
    """The official axis mix-up is kept: with a softmax over filters this would hold exactly."""
    torch.manual_seed(0)
    unification = LearnedFeatureUnification(16, 5, (6, 6))
    features = F.normalize(torch.randn(1, 32, 6, 6), dim=1)
    assert (unification(features) - unification(features.flip(1))).abs().max() > 1e-3


def test_chunks_do_not_change_the_result() -> None:
    image, features = torch.randn(1, 3, 32, 48), torch.randn(1, 32, 4, 6)
    whole, by_row = tiny(output_size=(8, 12)), tiny(output_size=(8, 12), query_chunk=30)
    assert by_row.cross_decode.rows_at_once == 2
    torch.testing.assert_close(whole(image, features), by_row(image, features), atol=1e-6, rtol=0)


def test_many_queries_are_chunked_by_default() -> None:
    def rows(side: int) -> int:
        return AnyUp(image_size=side, feature_size=4, qk_dim=16).cross_decode.rows_at_once

    assert rows(128) == 128
    assert rows(160) == 51


def test_without_window_every_query_sees_every_key() -> None:
    anyup = tiny(window_ratio=0)
    assert anyup.cross_decode.mask is None
    assert anyup(torch.randn(1, 3, 32, 48), torch.randn(1, 32, 4, 6)).shape == (1, 32, 32, 48)


def test_other_filter_count_than_width() -> None:
    anyup = tiny(lfu_dim=8)
    assert "key_features_encoder.1.shortcut.weight" in anyup.state_dict()
    assert anyup(torch.randn(1, 3, 32, 48), torch.randn(1, 24, 4, 6)).shape == (1, 24, 32, 48)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope.freqs": None}, r"missing: rope\.freqs"),
        ({f"{ATTENTION}in_proj_bias": None}, r"missing: .*in_proj_bias"),
        ({"head.bias": torch.zeros(1)}, r"unexpected: head\.bias"),
        ({f"{ATTENTION}in_proj_weight": torch.zeros(64, 16)}, r"wrong shape: .*in_proj_weight is \(64, 16\)"),
        ({"rope.freqs": torch.zeros(2, 8)}, r"wrong shape: rope\.freqs is \(2, 8\)"),
        ({"key_features_encoder.0.basis": torch.zeros(())}, r"wrong shape: key_features_encoder\.0\.basis"),
    ],
)
def test_wrong_weights_are_named(change: dict[str, Tensor | None], named: str) -> None:
    anyup = tiny()
    state = {key: value for key, value in (official_state(anyup) | change).items() if value is not None}
    with pytest.raises(WeightsError, match=f"anyup.pth.*{named}"):
        load_state(anyup, state, "anyup.pth")


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(InputError, match=r"\(32, 48\).*\(4, 6\).*\(5, 6\)"):
        tiny()(torch.randn(1, 3, 32, 48), torch.randn(1, 32, 5, 6))
    with pytest.raises(InputError, match="qk_dim 20"):
        AnyUp(image_size=32, feature_size=4, qk_dim=20)


@pytest.mark.parametrize(
    ("options", "nodes"),
    [({"output_size": (4, 6)}, 245), ({"output_size": (7, 9), "query_chunk": 27}, 265)],
    ids=["refine", "uneven-chunked"],
)
def test_onnx_matches_torch(options: dict[str, object], nodes: int, tmp_path: Path) -> None:
    anyup = tiny(**options)
    inputs = {"image": torch.randn(1, 3, 32, 48), "features": torch.randn(1, 32, 4, 6)}
    program = torch.onnx.export(
        anyup, tuple(inputs.values()), dynamo=True, opset_version=20, input_names=list(inputs), verbose=False
    )
    assert program is not None
    operators = Counter(node.op_type for node in program.model.graph)
    print(operators.total(), dict(operators))
    assert not operators.keys() & {"If", "Loop", "NonZero", "GridSample", "Pow", "Cos", "Sin"}
    assert operators.total() <= nodes
    program.save(tmp_path / "anyup.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "anyup.onnx")
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    torch.testing.assert_close(torch.from_numpy(found), anyup(**inputs), atol=1e-4, rtol=0)
