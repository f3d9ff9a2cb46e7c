"""DINOv3 backbone: what the golden files cannot tell apart, and loading."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from export.checkpoints import load_state
from export.models.attention import attention
from export.models.backbone import DinoVisionTransformer, rotate, swiglu_hidden
from export.presets import BACKBONES
from export.random_weights import RandomWeights
from export.stages import build_backbone
from runtime.errors import WeightsError
from runtime.rope import rope_tables

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
BIAS = "blocks.0.attn.qkv.bias"


def official_state(**changes: object) -> dict[str, Tensor]:
    module = DinoVisionTransformer(**{**TINY, **changes})  # type: ignore[arg-type]
    RandomWeights().fill(module, "backbone")
    state = dict(module.state_dict())
    mask = torch.ones(96)
    mask[32:64] = 0
    state |= {f"{key}_mask": mask for key in list(state) if key.endswith("qkv.bias")}
    return state | {"mask_token": torch.ones(1, 32)}


def run(module: DinoVisionTransformer, image: Tensor) -> Tensor:
    grid = (image.shape[2] // 16, image.shape[3] // 16)
    tables = rope_tables(module.rope_embed.periods.tolist(), grid, module.prefix_tokens)
    with torch.inference_mode():
        return module(image, *map(torch.from_numpy, tables))


@pytest.mark.parametrize("mask", ["official", "NaN"])
def test_the_k_bias_is_masked_at_load(mask: str) -> None:
    state = official_state()
    if mask == "NaN":  # what a freshly built official module holds
        state |= {key: torch.full((96,), torch.nan) for key in state if key.endswith("bias_mask")}
    module = DinoVisionTransformer(**TINY)  # type: ignore[arg-type]
    load_state(module, state, "x.pth")
    loaded = module.state_dict()[BIAS]
    assert state[BIAS].abs().min() > 0
    assert torch.equal(loaded[:32], state[BIAS][:32])
    assert torch.equal(loaded[32:64], torch.zeros(32))
    assert torch.equal(loaded[64:], state[BIAS][64:])


def test_a_missing_mask_names_file_and_key() -> None:
    state = official_state()
    del state[f"{BIAS}_mask"]
    with pytest.raises(WeightsError, match=rf"x\.pth: missing key {BIAS}_mask"):
        load_state(DinoVisionTransformer(**TINY), state, "x.pth")  # type: ignore[arg-type]


def test_without_qkv_bias_there_is_no_mask() -> None:
    module = DinoVisionTransformer(**TINY, qkv_bias=False)  # type: ignore[arg-type]
    load_state(module, official_state(qkv_bias=False), "x.pth")


@pytest.mark.parametrize(
    ("ratio", "width", "align", "hidden"),
    [(6, 384, 8, 1536), (6, 1280, 8, 5120), (3, 4096, 64, 8192), (4, 1024, 64, 2752)],
)
def test_swiglu_width(ratio: float, width: int, align: int, hidden: int) -> None:
    assert swiglu_hidden(width, ratio, align) == hidden


@pytest.mark.parametrize("arch", sorted(set(BACKBONES) - {"tiny"}))
def test_parameter_counts_are_the_released_ones(arch: str) -> None:
    millions = {"vits16": 21.6, "vits16plus": 28.7, "vitb16": 85.7, "vitl16": 303.1, "vitl16plus": 403.9,
                "vith16plus": 840.6, "vit7b16": 6716.0}  # fmt: skip
    with torch.device("meta"):
        module = DinoVisionTransformer(**BACKBONES[arch].model_dump(exclude={"arch"}))
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions[arch], rel=1e-3)


def test_constructor_periods_are_the_released_ones() -> None:
    """Base 100 over head_dim/4 exponents, rounded to bfloat16."""
    from small_models import small_config

    periods = build_backbone(small_config()).rope_embed.periods
    assert periods.dtype == torch.float32
    assert torch.equal(periods, periods.bfloat16().float())
    assert periods.tolist() == pytest.approx([100 ** (i / 16) for i in range(16)], rel=5e-3)


def test_rotation_keeps_norms_and_depends_on_distance_only() -> None:
    sin, cos = (torch.from_numpy(table) for table in rope_tables([1.0, 3.0], (1, 8), 0))
    q, k = torch.randn(8, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 8, 8)
    rotated = rotate(q, sin, cos)
    assert torch.allclose(rotated.norm(dim=-1), q.norm(dim=-1))
    scores = (rotated @ rotate(k, sin, cos).transpose(-2, -1))[0, 0]
    for distance in (-3, 1, 4):
        diagonal = scores.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5)


def test_a_batch_is_its_images() -> None:
    module = DinoVisionTransformer(**TINY)  # type: ignore[arg-type]
    RandomWeights().fill(module, "backbone")
    images = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    each = torch.cat([run(module, image[None]) for image in images])
    assert each.shape == (3, 5 + 2 * 3, 32)
    assert torch.allclose(run(module, images), each, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_exported_attention_is_the_eager_one(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.full((7, 7), -1e4).triu(1) if masked else None
    eager = attention(q, k, v, mask)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.allclose(attention(q, k, v, mask), eager, atol=1e-6)
