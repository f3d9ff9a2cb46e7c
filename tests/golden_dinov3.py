"""Our DINOv3 backbone against `dinov3_vit*` golden files."""

from __future__ import annotations

from typing import Any

import torch
from golden_case import GoldenCase
from torch import Tensor

from export.checkpoints import load_state
from export.models.backbone import DinoVisionTransformer
from runtime.rope import rope_tables

Tensors = dict[str, Tensor]
FFN_ALIGN = {"swiglu": 8, "swiglu32": 32, "swiglu64": 64, "swiglu128": 128}


def build_backbone(config: dict[str, Any]) -> DinoVisionTransformer:
    """From the official constructor's arguments; what they leave out has the official default."""
    ffn = config.get("ffn_layer", "mlp")
    return DinoVisionTransformer(
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        ffn="mlp" if ffn == "mlp" else "swiglu",
        ffn_ratio=config.get("ffn_ratio", 4.0),
        ffn_align=FFN_ALIGN.get(ffn, 8),
        qkv_bias=config.get("qkv_bias", True),
        mask_k_bias=config.get("mask_k_bias", False),
        n_storage_tokens=config.get("n_storage_tokens", 4),
        untie_cls_and_patch_norms=config.get("untie_cls_and_patch_norms", False),
    )


def tables(backbone: DinoVisionTransformer, image: Tensor) -> tuple[Tensor, Tensor]:
    grid = (image.shape[-2] // backbone.patch_size, image.shape[-1] // backbone.patch_size)
    sin, cos = rope_tables(backbone.rope_embed.periods.tolist(), grid, backbone.prefix_tokens)
    return torch.from_numpy(sin), torch.from_numpy(cos)


def run(case: GoldenCase) -> Tensors:
    backbone = build_backbone(case.config)
    load_state(backbone, case.state, case.name)
    taps: list[Tensor] = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: taps.append(output))
    found: Tensors = {}
    for name, image in case.inputs.items():
        size = name.removeprefix("image_")
        taps.clear()
        sin, cos = tables(backbone, image)
        found |= {f"{size}/{key}": value for key, value in named_tokens(backbone(image, sin, cos)).items()}
        found[f"{size}/x_prenorm"] = taps[-1]
        found[f"{size}/rope_sin"] = sin[backbone.prefix_tokens :]
        found[f"{size}/rope_cos"] = cos[backbone.prefix_tokens :]
        grid = (image.shape[-2] // 16, image.shape[-1] // 16)
        for i, tap in enumerate(taps):
            tokens = named_tokens(backbone.final_norm(tap))
            patches = tokens["x_norm_patchtokens"].transpose(1, 2).unflatten(2, grid)
            found[f"{size}/block{i}_normed_patch_chw"] = patches
            found[f"{size}/block{i}_normed_cls"] = tokens["x_norm_clstoken"]
            found[f"{size}/block{i}_normed_storage"] = tokens["x_storage_tokens"]
    return found


def named_tokens(tokens: Tensor, storage: int = 4) -> Tensors:
    return {
        "x_norm_clstoken": tokens[:, 0],
        "x_storage_tokens": tokens[:, 1 : 1 + storage],
        "x_norm_patchtokens": tokens[:, 1 + storage :],
    }
