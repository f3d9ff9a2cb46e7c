"""Weight files as the authors release them, in small: their names, their keys, and all that they hold besides."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from export import stages
from export.presets import ModelConfig
from export.random_weights import RandomWeights

FILES = {
    "backbone": "dinov3_tiny_pretrain_lvd1689m-8aa4cbdd.pth",
    "dinotxt": "dinov3_tiny_dinotxt_vision_head_and_text_encoder-a442d8f5.pth",
    "anyup": "anyup_multi_backbone.pth",
    "sam": "sam_tiny_01ec64.pth",
    "refinement": "dinov3seg_tiny_refinement.pth",
}
# As released: rounded to bfloat16, and not the values that any formula gives.
PERIODS = (1.0, 1.3359375, 1.78125, 2.375, 3.15625, 4.21875, 5.625, 7.5, 10.0, 13.375, 17.75, 23.75, 31.625,
           42.25, 56.25, 75.5)  # fmt: skip


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.1


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def parts_of(config: ModelConfig) -> dict[str, torch.nn.Module]:
    """Our modules with the weights that the files are made from."""
    weights = RandomWeights(seed=7)
    table = {stage.name: stage.build(weights) for stage in stages.stage_table(config, refinement=True)}
    features, geometry = table["backbone"], config.geometry
    with torch.no_grad():
        features.backbone.rope_embed.periods.copy_(torch.tensor(PERIODS))
    return {
        "backbone": features.backbone,
        "vision_head": features.head,
        "text_encoder": table["text_encoder"],
        "anyup": stages.anyup(config, "anyup", geometry.image_size, geometry.grid).build(weights).anyup,
        "guidance": table["sam_encoder"],
        "head": table["refinement"].aggregator,
    }


def official_states(config: ModelConfig) -> dict[str, dict[str, Tensor]]:
    parts = {name: dict(module.state_dict()) for name, module in parts_of(config).items()}
    return {
        "backbone": _backbone(parts["backbone"]),
        "dinotxt": prefixed("visual_model.head.", parts["vision_head"])
        | prefixed("text_model.", parts["text_encoder"])
        | {"logit_scale": torch.tensor([2.6])},
        "anyup": _anyup(parts["anyup"]),
        "sam": _sam(parts["guidance"], config),
        "refinement": prefixed("head.", parts["head"])
        | {"head.layers.0.swin_block.block_2.attn_mask": torch.zeros(4, 144, 144)}
        | {f"spe.{key}": value for key, value in parts["guidance"].items() if key.startswith("upsample")},
    }


def _backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    masks = {}
    for key, bias in state.items():
        if key.endswith("qkv.bias"):
            third = len(bias) // 3
            masks[f"{key}_mask"] = torch.cat([torch.ones(third), torch.zeros(third), torch.ones(third)])
    return state | masks | {"mask_token": normal(1, state["cls_token"].shape[-1])}


def _anyup(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values and output projection belong to the official attention, though they affect nothing."""
    attention = "cross_decode.cross_attn.attention."
    weight, bias = state[f"{attention}in_proj_weight"], state[f"{attention}in_proj_bias"]
    dim = weight.shape[1]
    assert len(weight) == 2 * dim
    return state | {
        f"{attention}in_proj_weight": torch.cat([weight, normal(dim, dim)]),
        f"{attention}in_proj_bias": torch.cat([bias, normal(dim)]),
        f"{attention}out_proj.weight": normal(dim, dim),
        f"{attention}out_proj.bias": normal(dim),
    }


def _sam(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Position tables of the pretraining size; prompt encoder and mask decoder."""
    grid, width = config.sam.pretrained_size // 16, config.sam.embed_dim
    found = {key: value for key, value in state.items() if key.startswith("image_encoder.")}
    found["image_encoder.pos_embed"] = normal(1, grid, grid, width)
    for key in found:
        if ".rel_pos_" in key:
            index = int(key.split(".")[2])
            side = grid if index in config.sam.global_attn_indexes else config.sam.window_size
            found[key] = normal(2 * side - 1, width // config.sam.num_heads)
    return found | {
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": normal(2, 32),
        "prompt_encoder.no_mask_embed.weight": normal(1, 64),
        "mask_decoder.iou_token.weight": normal(1, 64),
        "mask_decoder.transformer.layers.0.norm1.bias": normal(64),
    }


def write_official_files(folder: Path, config: ModelConfig, suffix: str = ".pth") -> Path:
    for file, state in official_states(config).items():
        path = (folder / FILES[file]).with_suffix(suffix)
        write(path, {key: value.contiguous() for key, value in state.items()})
    return folder


def write(path: Path, state: object) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
