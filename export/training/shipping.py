"""Trained modules -> weight files as the official projects write them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from runtime.files import atomic_file


class FreshWeights:
    """Leaves a module as its constructor made it: the start of training."""

    random = True

    def fill(self, module: nn.Module, part: str) -> None:
        """Nothing to fill in."""

    def checksums(self) -> dict[str, str]:
        return {}


def save_weights(modules: Mapping[str, nn.Module], tokenizer: Path, out: Path) -> None:
    """Writes the files of all phases that have been trained, fp16, under the names that `--weights` looks for."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    for name, state in official_files(modules).items():
        with atomic_file(out / f"{name}.safetensors") as file:
            save_file({key: value.half().contiguous() for key, value in state.items()}, file)


def official_files(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    files: dict[str, dict[str, Tensor]] = {}
    if "align" in modules:
        state = modules["align"].state_dict()
        files["dinov3_tiny_pretrain_tabletop"] = with_k_masks(part(state, "backbone."))
        files["dinov3_tiny_dinotxt_vision_head_and_text_encoder_tabletop"] = part(
            state, "head.", "visual_model.head."
        ) | part(state, "text_encoder.", "text_model.")
    if "early" in modules:
        files["anyup_tabletop"] = with_unused_projections(part(modules["early"].state_dict(), "anyup."))
    if "head" in modules:
        state = modules["head"].state_dict()
        encoder = part(state, "guidance.image_encoder.", "image_encoder.")
        files["sam_tiny_tabletop"] = {key: official_table(key, value) for key, value in encoder.items()}
        files["dinov3seg_tiny_refinement_tabletop"] = part(state, "aggregator.", "head.") | part(
            state, "guidance.upsample", "spe.upsample"
        )
    return files


def part(state: Mapping[str, Tensor], prefix: str, official: str = "") -> dict[str, Tensor]:
    return {official + key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def with_k_masks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official DINOv3 files carry a mask beside every qkv bias, 1 | 0 | 1."""
    masks = {}
    for key, value in state.items():
        if key.endswith("attn.qkv.bias"):
            mask = torch.ones_like(value)
            mask[len(mask) // 3 : 2 * len(mask) // 3] = 0
            masks[f"{key}_mask"] = mask
    return state | masks


def with_unused_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official AnyUp files hold a value and an output projection, which have no effect."""
    attention = "cross_decode.cross_attn.attention."
    weight, bias = state[f"{attention}in_proj_weight"], state[f"{attention}in_proj_bias"]
    dim = weight.shape[1]
    return state | {
        f"{attention}in_proj_weight": torch.cat([weight, torch.zeros(dim, dim)]),
        f"{attention}in_proj_bias": torch.cat([bias, torch.zeros(dim)]),
        f"{attention}out_proj.weight": torch.zeros(dim, dim),
        f"{attention}out_proj.bias": torch.zeros(dim),
    }


def official_table(key: str, value: Tensor) -> Tensor:
    """Our relative positions (S, head_dim, S), [y, :, y'], back to the official (2S - 1, head_dim), y - y' + S - 1."""
    if not key.endswith((".rel_pos_h", ".rel_pos_w")):
        return value
    first_row, first_column = value[0].T, value[1:, :, 0]  # y = 0: distances 0 .. -(S-1); y' = 0: 1 .. S-1
    return torch.cat([first_row.flip(0), first_column])
