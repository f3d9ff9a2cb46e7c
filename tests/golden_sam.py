"""Our SAM image encoder against `sam*` golden files."""

from __future__ import annotations

import torch
from golden_case import GoldenCase
from torch import Tensor

from export.checkpoints import load_state
from export.models.sam import SamImageEncoder


def build_sam(case: GoldenCase) -> SamImageEncoder:
    """From the official constructor's arguments (`img_size` is the checkpoint's), with every block tapped."""
    config = case.config
    height, width = case.inputs["image"].shape[-2:]
    shared = ("embed_dim", "depth", "num_heads", "window_size", "out_chans", "mlp_ratio", "norm_eps")
    return SamImageEncoder(
        image_size=(height, width),
        pretrained_size=config.get("img_size", 1024),
        global_attn_indexes=config.get("global_attn_indexes", ()),
        taps=range(config["depth"]),
        **{key: config[key] for key in shared if key in config},
    )


@torch.inference_mode()
def run(case: GoldenCase) -> dict[str, Tensor]:
    encoder = build_sam(case)
    load_state(encoder, case.state, case.name)
    neck, *taps = encoder(case.inputs["image"])
    blocks = {f"block{i}_bhwc": tap.permute(0, 2, 3, 1) for i, tap in enumerate(taps)}
    return {"neck": neck, **blocks}
