"""The refinement head: how classes act on each other, padding, chunks, windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from export.models.class_attention import Heads, full_attention, linear_attention
from export.models.refinement import Aggregator, correlation
from export.models.swin import SwinLayer, shifted_window_mask
from export.random_weights import RandomWeights

GRID, CHANNELS = 6, 24


def aggregator(**changes: Any) -> Aggregator:
    options: dict[str, Any] = {
        "feature_resolution": (GRID, GRID),
        "window_size": 3,
        "text_guidance_dim": CHANNELS,
        "text_guidance_proj_dim": 16,
        "appearance_guidance_dim": 8,
        "appearance_guidance_proj_dim": 16,
        "decoder_dims": (32, 16),
        "decoder_guidance_dims": (8, 8),
        "decoder_guidance_proj_dims": (8, 8),
        "hidden_dim": 16,
        "pad_len": 0,
    }
    module = Aggregator(**{**options, **changes})
    RandomWeights().fill(module, "head")
    return module


def inputs(classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cosines, guidance at 1/16, text, guidance at 1/8 and 1/4."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return (
        normal(classes, 2, GRID, GRID).clamp(-1, 1),
        normal(1, 8, GRID, GRID),
        torch.nn.functional.normalize(normal(classes, 2, CHANNELS), dim=-1),
        normal(1, 8, 2 * GRID, 2 * GRID),
        normal(1, 8, 4 * GRID, 4 * GRID),
    )


@torch.inference_mode()
def logits(module: Aggregator, cosines: Tensor, guidance: Tensor, text: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return module.decode(module.refine(cosines, guidance, text, torch.ones(len(text))), low, high)


@pytest.mark.parametrize("kind", ["linear", "full"])
@pytest.mark.parametrize("pad_len", [0, 4, 16])
def test_the_order_of_classes_does_not_matter(kind: str, pad_len: int) -> None:
    module = aggregator(attention_type=kind, pad_len=pad_len)
    cosines, guidance, text, low, high = inputs(7)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    expected = logits(module, cosines, guidance, text, low, high)[order]
    found = logits(module, cosines[order], guidance, text[order], low, high)
    assert expected.shape == (7, 4 * GRID, 4 * GRID)
    assert torch.allclose(found, expected, atol=1e-4)


def test_classes_see_each_other() -> None:
    module = aggregator()
    cosines, guidance, text, low, high = inputs(5)
    whole = logits(module, cosines, guidance, text, low, high)
    part = logits(module, cosines[:3], guidance, text[:3], low, high)
    assert (whole[:3] - part).abs().max() > 1e-3


def test_the_decoder_works_class_by_class() -> None:
    module = aggregator()
    _, _, _, low, high = inputs(1)
    features = torch.randn(5, 16, GRID, GRID, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = module.decode(features, low, high)
        chunks = torch.cat([module.decode(chunk, low, high) for chunk in features.split(2)])
    assert torch.allclose(whole, chunks, atol=1e-5)


def random_heads(classes: int, seed: int) -> Heads:
    parts = torch.randn(3, 4, 2, classes, 8, generator=torch.Generator().manual_seed(seed))
    return Heads(*parts)


@pytest.mark.parametrize("attend", [linear_attention, full_attention])
@pytest.mark.parametrize("count", [1, 13, 250])
def test_one_weighted_padding_class_is_many_equal_ones(attend: Any, count: int) -> None:
    x, pad = random_heads(3, 0), random_heads(1, 1)
    filled = Heads(*(torch.cat([a, b.expand(-1, -1, count, -1)], dim=2) for a, b in zip(x, pad, strict=True)))
    expected = attend(filled, torch.ones(3 + count), None, None)[:, :, :3]
    assert torch.allclose(attend(x, torch.ones(3), pad, torch.tensor(float(count))), expected, atol=1e-5)
    assert not torch.allclose(attend(x, torch.ones(3), None, None), expected, atol=1e-3)


@pytest.mark.parametrize("attend", [linear_attention, full_attention])
def test_no_padding_classes_left(attend: Any) -> None:
    x, pad = random_heads(3, 0), random_heads(1, 1)
    without = attend(x, torch.ones(3), None, None)
    assert torch.allclose(attend(x, torch.ones(3), pad, torch.tensor(0.0)), without, atol=1e-5)


@pytest.mark.parametrize(("classes", "count"), [(1, 3), (3, 1), (4, 0), (9, 0)])
def test_padding_fills_up_to_pad_len(classes: int, count: int) -> None:
    layer = aggregator(pad_len=4).layers[0].attention
    present = torch.tensor([1.0] * classes + [0.0] * 2)  # what only fills the batch up does not count
    padding = layer.padding(present)
    assert padding is not None
    assert padding.count.item() == count
    assert aggregator().layers[0].attention.padding(present) is None


@pytest.mark.parametrize("kind", ["linear", "full"])
@pytest.mark.parametrize("pad_len", [0, 4, 16])
def test_classes_that_fill_the_batch_up_are_not_seen(kind: str, pad_len: int) -> None:
    module = aggregator(attention_type=kind, pad_len=pad_len)
    cosines, guidance, text, _, _ = inputs(8)
    present = torch.tensor([1.0] * 5 + [0.0] * 3)
    expected = module.refine(cosines[:5], guidance, text[:5], torch.ones(5))
    for fill in (1.0, -7.0, 0.0):  # whatever they hold
        cosines[5:], text[5:] = fill, fill
        assert torch.allclose(module.refine(cosines, guidance, text, present)[:5], expected, atol=1e-4)
    assert not torch.allclose(module.refine(cosines, guidance, text, torch.ones(8))[:5], expected, atol=1e-3)


def test_linear_attention_matches_its_formula_for_many_classes() -> None:
    x = random_heads(400, 2)
    q, k = torch.nn.functional.elu(x.q) + 1, torch.nn.functional.elu(x.k) + 1
    weights = q @ k.transpose(-2, -1)
    expected = (weights / weights.sum(dim=-1, keepdim=True)) @ x.v
    assert torch.allclose(linear_attention(x, torch.ones(400), None, None), expected, atol=1e-4)


def test_correlation_is_the_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    features, text = torch.randn(6, 5, generator=generator) * 30, torch.randn(4, 2, 5, generator=generator)
    found = correlation(features, text, (2, 3))
    assert found.shape == (4, 2, 2, 3)
    expected = torch.cosine_similarity(text[3, 1], features[5], dim=0)
    assert found[3, 1, 1, 2].item() == pytest.approx(expected.item(), abs=1e-6)
    assert found.abs().max() <= 1 + 1e-6


def test_shifted_windows_mask_what_came_from_the_other_border() -> None:
    mask = shifted_window_mask((4, 4), 2, 1)
    assert mask.shape == (4, 1, 4, 4)
    assert not mask[0].any()  # the inner window is whole
    assert mask[1, 0].tolist() == [[0, -100, 0, -100], [-100, 0, -100, 0]] * 2
    assert mask[2, 0].tolist() == [[0, 0, -100, -100]] * 2 + [[-100, -100, 0, 0]] * 2
    assert (mask[3, 0] == 0).sum() == 4  # four corners, each alone


@pytest.mark.parametrize(("window", "used", "shift"), [(3, 3, 1), (2, 2, 1), (6, 6, 0), (10, 6, 0)])
def test_windows_as_large_as_the_grid_are_not_shifted(window: int, used: int, shift: int) -> None:
    layer = SwinLayer(16, 16, 4, (GRID, GRID), window)
    assert (layer.block_1.window, layer.block_1.shift) == (used, 0)
    assert (layer.block_2.window, layer.block_2.shift) == (used, shift)
    assert (layer.block_2.attn_mask is None) == (shift == 0)


def test_a_window_that_does_not_divide_the_grid() -> None:
    with pytest.raises(ValueError, match="window_size 4 does not divide the feature grid 6x6"):
        SwinLayer(16, 16, 4, (GRID, GRID), 4)
