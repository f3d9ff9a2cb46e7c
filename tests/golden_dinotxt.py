"""Our dino.txt vision head and text encoder against the `dinotxt_*` golden files."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from golden_case import GoldenCase
from golden_dinov3 import Tensors, build_backbone, named_tokens, tables

from export.checkpoints import load_state, sub_state
from export.models.dinotxt import TextEncoder, VisionHead


def build_head(input_dim: int, config: dict[str, Any]) -> VisionHead:
    return VisionHead(
        embed_dim=input_dim,
        num_heads=config["num_heads"],
        num_blocks=config.get("num_blocks", 2),
        swiglu_align=config.get("swiglu_align", 64),
    )


def build_text_encoder(config: dict[str, Any], embed_dim: int) -> TextEncoder:
    return TextEncoder(
        vocab_size=config.get("vocab_size") or config["vocab"],
        dim=config["dim"],
        num_heads=config.get("num_heads") or config["heads"],
        num_layers=config.get("num_layers") or config["layers"],
        embed_dim=embed_dim,
        context_length=config.get("context_length", 77),
        ffn_ratio=config.get("ffn_ratio", 4.0),
    )


def run_vision_head(case: GoldenCase) -> Tensors:
    head = build_head(case.config["input_dim"], case.config)
    load_state(head, case.state, case.name)
    return {name: head(tokens) for name, tokens in case.inputs.items()}


def run_text_encoder(case: GoldenCase) -> Tensors:
    encoder = build_text_encoder(case.config, case.config["embed_dim"])
    load_state(encoder, case.state, case.name)
    ids = case.inputs["token_ids"]
    features = encoder.features(ids)
    return {
        "backbone_tokens": encoder.backbone.ln_final(encoder.backbone(ids)),
        "text_features": features,
        "text_features_normalized": F.normalize(features, dim=-1),
    }


def run_full(case: GoldenCase) -> Tensors:
    """The whole of dino.txt, with image features and both cosines."""
    config, vision = case.config, case.config["vision"]
    backbone = build_backbone({"mask_k_bias": True, **vision})
    head = build_head(vision["embed_dim"], {"num_heads": vision["num_heads"], "num_blocks": config["head_blocks"]})
    encoder = build_text_encoder(config["text"], config["embed_dim"])
    for module, prefix in (
        (backbone, "visual_model.backbone."),
        (head, "visual_model.head."),
        (encoder, "text_model."),
    ):
        load_state(module, sub_state(case.state, prefix), case.name)
    ids = case.inputs["token_ids"]
    global_half, local_half = encoder(ids).unbind(dim=1)
    found: Tensors = {"text_features": encoder.features(ids)}
    for name, image in case.inputs.items():
        if not name.startswith("image_"):
            continue
        tokens = backbone(image, *tables(backbone, image))
        aligned = named_tokens(head(tokens))
        patches, cls = aligned["x_norm_patchtokens"], aligned["x_norm_clstoken"]
        unit_patches = F.normalize(patches, dim=-1)
        found |= {
            f"{name.removeprefix('image_')}/{key}": value
            for key, value in {
                "backbone_patch_tokens": named_tokens(tokens)["x_norm_patchtokens"],
                "head_patch_tokens": patches,
                "head_cls_token": cls,
                "image_features": F.pad(cls, (0, patches.shape[-1])) + F.pad(patches.mean(1), (cls.shape[-1], 0)),
                "cos_local_half": unit_patches @ local_half.T,
                "cos_global_half": unit_patches @ global_half.T,
            }.items()
        }
    return found


def run(case: GoldenCase) -> Tensors:
    if "input_dim" in case.config:
        return run_vision_head(case)
    if "vision" in case.config:
        return run_full(case)
    return run_text_encoder(case)
