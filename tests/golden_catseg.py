"""Our refinement head against the `catseg_*` golden files (CAT-Seg `Aggregator`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from golden_case import GoldenCase, record_outputs
from torch import Tensor, nn

from export.checkpoints import load_state
from export.models.refinement import Aggregator, correlation
from runtime.classes import select_classes

Tensors = dict[str, Tensor]
DROPPED_LOGIT = -100.0  # what the official code gives to classes cut by `pad_len`


def build_aggregator(config: dict[str, Any]) -> Aggregator:
    """From the official constructor's arguments: ours has the same names."""
    return Aggregator(**config)


def run(case: GoldenCase) -> Tensors:
    """One image at a time, as the product runs it; batches are stacked for the comparison."""
    aggregator = build_aggregator(case.config)
    load_state(aggregator, case.state, case.name)
    features = case.inputs["img_feats"]
    guidance = [case.inputs[f"guidance{i}"] for i in range(3)]
    found: Tensors = {}
    for name, text in case.inputs.items():
        if name.startswith("text_"):
            images = [
                aggregate(aggregator, features[i], text[i], [g[i : i + 1] for g in guidance])
                for i in range(len(features))
            ]
            prefix = name.removeprefix("text_")
            found |= {f"{prefix}/{key}": torch.cat([image[key] for image in images]) for key in images[0]}
    return found


def aggregate(aggregator: Aggregator, features: Tensor, text: Tensor, guidance: list[Tensor]) -> Tensors:
    """One image: features (C, G, G), text (K, P, C) -> logits and every inner tensor under its golden name."""
    grid = (features.shape[-2], features.shape[-1])
    cosines = correlation(features.flatten(1).T, text, grid)
    kept = select_classes(cosines.numpy(), aggregator.pad_len)
    chosen = slice(None) if kept is None else torch.from_numpy(kept)
    # The official truncation path averages unit prompts over P, the other one the prompts as given.
    prompts = text if kept is None else F.normalize(text[chosen], dim=-1)
    present = torch.ones(len(prompts))
    with record_outputs(inner_modules(aggregator)) as inner:
        decoded = aggregator.decode(aggregator.refine(cosines[chosen], guidance[0], prompts, present), *guidance[1:])
    logits = torch.full((len(text), *decoded.shape[1:]), DROPPED_LOGIT)
    logits[chosen] = decoded
    found = {"logits": logits[None], "correlation_BPTHW": cosines.transpose(0, 1)[None]}
    order = slice(None) if kept is None else official_order(cosines, kept)
    for name, value in inner.items():
        if name.endswith("_BCTHW"):
            found[name] = value[order].transpose(0, 1)[None]
        else:
            found[name] = value[order] if name.endswith("_BTxCHW") else value
    found["last_layer_class_BCTHW"] = found[f"layer{len(aggregator.layers) - 1}_class_BCTHW"]
    return found


def official_order(cosines: Tensor, kept: npt.NDArray[np.int64]) -> Tensor:
    """Where the official, unsorted top-k puts the classes that we keep in ascending order."""
    strongest = cosines.flatten(1).amax(dim=1)
    official = strongest.topk(len(kept), sorted=False).indices
    return torch.searchsorted(torch.from_numpy(kept), official)


def inner_modules(aggregator: Aggregator) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {
        "conv1_BTxCHW": aggregator.conv1,
        "text_guidance_projected": aggregator.text_guidance_projection,
        "guidance_projected": aggregator.guidance_projection,
        "decoder1_BTxCHW": aggregator.decoder1,
        "decoder2_BTxCHW": aggregator.decoder2,
    }
    for i, projection in enumerate(aggregator.decoder_guidance_projection):
        modules[f"decoder_guidance_projected{i}"] = projection
    for i, layer in enumerate(aggregator.layers):
        modules |= {f"layer{i}_swin_BCTHW": layer.swin_block, f"layer{i}_class_BCTHW": layer.attention}
    return modules
