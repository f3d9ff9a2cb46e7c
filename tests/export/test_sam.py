"""SAM encoder: golden files, Meta's own code as a living oracle, guidance maps, loading errors, ONNX."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import golden_sam
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from golden_case import GoldenCase
from torch import Tensor, nn

from export.checkpoints import load_state
from export.models.sam import SamGuidance, SamImageEncoder, merge_windows, relative_table, split_windows
from runtime.errors import InputError, WeightsError

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("sam*.safetensors"))
TINY: dict[str, Any] = {
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 3,
    "global_attn_indexes": (1,),
    "out_chans": 8,
}
VIT_B: dict[str, Any] = {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": (2, 5, 8, 11)}
VIT_H: dict[str, Any] = {"embed_dim": 160, "depth": 2, "num_heads": 2, "global_attn_indexes": (1,)}


@pytest.fixture
def official_encoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`ImageEncoderViT` of the segment-anything package, whose import of torchvision it does not need."""
    for name, attributes in {
        "torchvision": (),
        "torchvision.ops": (),
        "torchvision.ops.boxes": ("batched_nms", "box_area"),
        "torchvision.transforms": (),
        "torchvision.transforms.functional": ("resize", "to_pil_image"),
    }.items():
        stub = ModuleType(name)
        stub.__dict__.update(dict.fromkeys(attributes))
        monkeypatch.setitem(sys.modules, name, stub)
    before = set(sys.modules)
    encoder = pytest.importorskip("segment_anything.modeling.image_encoder").ImageEncoderViT
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "segment_anything":
            del sys.modules[name]  # what was imported beside the stubs must not outlive them
    return encoder


def randomise(module: nn.Module, seed: int = 3) -> None:
    """No parameter keeps an initial 0 or 1, or a mistake in its use would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
            elif "pos" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)


def official_state(**sizes: Any) -> dict[str, Tensor]:
    """Random weights with official shapes: the table of a block is (2S-1, head_dim)."""
    encoder = SamImageEncoder(**sizes)
    randomise(encoder)
    state = dict(encoder.state_dict())
    for key, table in state.items():
        if ".rel_pos_" in key:
            state[key] = torch.randn(2 * table.shape[0] - 1, table.shape[1]) * 0.3
    return state


def guidance(**options: Any) -> SamGuidance:
    module = SamGuidance(**{"grid": 6, "guidance_dims": (5, 4), "taps": (0, 2), **TINY, **options})
    state = official_state(image_size=160, pretrained_size=160, **TINY)
    upsamplers = {key: torch.randn_like(value) for key, value in module.state_dict().items() if "upsample" in key}
    other = {
        "prompt_encoder.no_mask_embed.weight": torch.zeros(1),
        "mask_decoder.iou_token.weight": torch.zeros(1),
    }
    load_state(module, {f"image_encoder.{key}": value for key, value in state.items()} | upsamplers | other, "x")
    return module


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    case = GoldenCase.read(path)
    found = golden_sam.run(case)
    errors = {name: (found[name] - expected).abs().max().item() for name, expected in case.outputs.items()}
    worst = max(errors, key=lambda name: errors[name])
    print(f"{case.name}: worst {errors[worst]:.1e} in {worst}")
    assert errors[worst] <= 2e-4, worst
    if "pos_embed_resized_bicubic" in case.inputs:
        resized = golden_sam.build_sam(case).prepare_state(case.state)["pos_embed"]
        torch.testing.assert_close(resized, case.inputs["pos_embed_resized_bicubic"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("side", "sizes"),
    [
        pytest.param(96, TINY | {"window_size": 4}, id="tiny"),
        pytest.param(64, TINY | {"window_size": 7}, id="window-larger-than-grid"),
        pytest.param(256, VIT_H, id="head-dim-80"),
        pytest.param(1024, VIT_B, id="vit_b-1024"),
    ],
)
@torch.inference_mode()
def test_equals_official_code(official_encoder: Any, side: int, sizes: dict[str, Any]) -> None:
    official = official_encoder(
        img_size=side,
        use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **{"window_size": 14, "out_chans": 256} | sizes,
    )
    randomise(official)
    taps = range(sizes["depth"])
    ours = SamImageEncoder(image_size=side, pretrained_size=side, taps=taps, **sizes)
    load_state(ours, official.state_dict(), "official")
    expected: list[Tensor] = []
    for block in official.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: expected.append(output))
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(4))
    expected.append(official(image))
    neck, *found = ours(image)
    for tensor, target in zip([*found, neck], expected, strict=True):
        target = target.permute(0, 3, 1, 2) if target is not expected[-1] else target
        error = (tensor - target).abs().max() / target.abs().max()
        assert error <= 2e-4


def test_windows_are_padded_right_and_bottom_and_merge_back() -> None:
    x = torch.randn(2, 10, 13, 3)
    windows = split_windows(x, 4)
    assert windows.shape == (2 * 3 * 4, 4, 4, 3)
    assert torch.equal(windows[1], x[0, :4, 4:8])
    assert torch.equal(windows[11, :2, :1], x[0, 8:, 12:])
    assert not windows[11, 2:].any() and not windows[11, :, 1:].any()
    assert torch.equal(merge_windows(windows, x.shape), x)


def test_relative_table_looks_up_the_offset() -> None:
    official = torch.randn(9, 6)
    table = relative_table(official, 5)
    for query in range(5):
        for key in range(5):
            assert torch.equal(table[query, :, key], official[query - key + 4])
    stretched = F.interpolate(official.T[None], size=13, mode="linear", align_corners=False)[0].T
    assert torch.equal(relative_table(official, 7)[6, :, 0], stretched[12])


def test_guidance_of_another_grid_is_resized() -> None:
    module = guidance(image_size=160, pretrained_size=160)
    image = torch.randn(2, 3, 160, 160)
    maps = module(image)
    neck, low, high = module.image_encoder(image)
    assert [tuple(map_.shape) for map_ in maps] == [(2, 8, 6, 6), (2, 5, 12, 12), (2, 4, 24, 24)]
    native = (neck, module.upsample1(low), module.upsample2(high))
    for map_, full in zip(maps, native, strict=True):
        expected = F.interpolate(full, map_.shape[-2:], mode="bilinear", align_corners=False)
        torch.testing.assert_close(map_, expected)


def test_guidance_takes_the_lower_tap_first() -> None:
    image = torch.randn(1, 3, 96, 96)
    for taps in ((0, 2), (2, 0)):
        module = guidance(image_size=96, pretrained_size=160, taps=taps)
        assert module.image_encoder.taps == (0, 2)
        _, low, high = module.image_encoder(image)
        _, first, second = module(image)
        assert torch.equal(first, module.upsample1(low))
        assert torch.equal(second, module.upsample2(high))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pos_embed": None}, r"missing: pos_embed"),
        ({"blocks.1.attn.rel_pos_h": None}, r"missing: blocks\.1\.attn\.rel_pos_h"),
        ({"cls_token": torch.zeros(1)}, r"unexpected: cls_token"),
        ({"pos_embed": torch.zeros(1, 9, 9, 48)}, r"wrong shape: pos_embed is \(1, 9, 9, 48\)"),
        ({"pos_embed": torch.zeros(9)}, r"wrong shape: pos_embed is \(9,\)"),
        (
            {"blocks.1.attn.rel_pos_w": torch.zeros(19, 7)},
            r"wrong shape: blocks\.1\.attn\.rel_pos_w is \(19, 7\)",
        ),
    ],
)
def test_wrong_weights_are_named(change: dict[str, Tensor | None], named: str) -> None:
    encoder = SamImageEncoder(image_size=(96, 128), pretrained_size=160, **TINY)
    state = official_state(image_size=160, pretrained_size=160, **TINY) | change
    with pytest.raises(WeightsError, match=f"sam.pth.*{named}"):
        load_state(encoder, {key: value for key, value in state.items() if value is not None}, "sam.pth")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": 100}, "100 is not a positive multiple of 16"),
        ({"image_size": (96, 0)}, "0 is not a positive multiple of 16"),
        ({"image_size": 96, "pretrained_size": 1000}, "1000"),
        ({"image_size": 96, "taps": (1, 3)}, r"\[3\]"),
        ({"image_size": 96, "num_heads": 5}, "num_heads 5"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SamImageEncoder(**{**TINY, **options})


def test_guidance_needs_two_taps() -> None:
    with pytest.raises(InputError, match="two taps"):
        SamGuidance(grid=6, guidance_dims=(5, 4), image_size=96, taps=(1,), **TINY)


def test_another_image_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(96, 96\).*\(96, 128\)"):
        SamImageEncoder(image_size=96, **TINY)(torch.zeros(1, 3, 96, 128))


def test_onnx_matches_torch(tmp_path: Path) -> None:
    module = guidance(image_size=96, pretrained_size=160, window_size=4)
    image = torch.randn(1, 3, 96, 96)
    program = torch.onnx.export(module, (image,), dynamo=True, opset_version=20, input_names=["image"], verbose=False)
    assert program is not None
    operators = Counter(node.op_type for node in program.model.graph)
    print(operators.total(), dict(operators))
    assert not operators.keys() & {"If", "Loop", "NonZero", "GridSample", "Pow", "Resize"}
    assert operators["LayerNormalization"] == 2 * TINY["depth"] + 2
    assert operators["Softmax"] == TINY["depth"]
    assert operators.total() <= 45 * TINY["depth"] + 20
    program.save(tmp_path / "sam.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "sam.onnx")
    found = session.run(None, {"image": image.numpy()})
    for tensor, expected in zip(found, module(image), strict=True):
        torch.testing.assert_close(torch.from_numpy(tensor), expected, atol=1e-4, rtol=0)
