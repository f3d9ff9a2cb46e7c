"""Our AnyUp against `anyup*` golden files."""

from __future__ import annotations

import re

import numpy as np
import torch
from golden_case import GoldenCase, record_outputs
from torch import Tensor

from export.checkpoints import load_state
from export.models.anyup import AnyUp
from export.models.anyup_tables import BLOCKED

SIZED = re.compile(r"(?P<kind>up|mask)_(?P<size>default|(\d+)x(\d+))(_packed|_chunk(?P<chunk>\d+))?")
OPTIONS = ("qk_dim", "num_heads", "window_ratio", "kernel_size", "kernel_size_lfu", "lfu_dim")


def build_anyup(case: GoldenCase, output_size: tuple[int, int] | None, chunk: int | None = None) -> AnyUp:
    """From the official constructor's arguments; what they leave out has the official default."""
    image, features = case.inputs["image"], case.inputs["features"]
    anyup = AnyUp(
        image_size=(image.shape[2], image.shape[3]),
        feature_size=(features.shape[2], features.shape[3]),
        output_size=output_size,
        query_chunk=chunk,
        **{key: case.config[key] for key in OPTIONS if key in case.config},
    )
    load_state(anyup, case.state, case.name)
    return anyup


def packed_mask(anyup: AnyUp) -> Tensor:
    """numpy.packbits of bool (queries, keys), True = blocked."""
    mask = anyup.cross_decode.mask
    height, width = anyup.output_size
    if mask is None:
        keys = anyup.feature_size[0] * anyup.feature_size[1]
        blocked = torch.zeros(height * width, keys, dtype=torch.bool)
    else:
        blocked = mask(0, height) <= BLOCKED
    return torch.from_numpy(np.packbits(blocked.numpy(), axis=1))


def intermediates(case: GoldenCase, query_size: tuple[int, int]) -> dict[str, Tensor]:
    anyup = build_anyup(case, query_size)
    parts = {
        "image_encoder_rope": anyup.rope,
        "q_pooled_first_size": anyup.query_encoder,
        "k_pooled": anyup.key_encoder,
        "lfu": anyup.key_features_encoder[0],
        "key_features": anyup.key_features_encoder,
        "k_aggregated": anyup.aggregation,
    }
    with record_outputs(parts) as found:
        anyup(case.inputs["image"], case.inputs["features"])
    rows, columns = anyup.rope.coordinates()
    return {**found, "rope_coords": torch.cartesian_prod(rows, columns)}


@torch.inference_mode()
def run(case: GoldenCase) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in case.outputs:
        if not (asked := SIZED.fullmatch(name)):
            continue
        size = None if asked["size"] == "default" else (int(asked[3]), int(asked[4]))
        anyup = build_anyup(case, size, int(asked["chunk"]) if asked["chunk"] else None)
        if asked["kind"] == "mask":
            found[name] = packed_mask(anyup)
        else:
            found[name] = anyup(case.inputs["image"], case.inputs["features"])
    queries = case.outputs.get("q_pooled_first_size")
    if queries is not None:
        found |= intermediates(case, (queries.shape[2], queries.shape[3]))
    return {name: found[name] for name in case.outputs if name in found}
