"""The smallest model that has every part, and a request to build it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from export.presets import ModelConfig, model_config
from export.random_weights import RandomWeights
from export.request import Request

SMALL = (
    "geometry.image_size=96",
    "geometry.crop_size=64",
    "geometry.stride=32",
    "refinement.window_size=3",
    "backbone.depth=2",
    "text.num_layers=1",
    "sam.depth=2",
    "sam.global_attn_indexes=[1]",
    "sam.taps=[0,1]",
    "sam.pretrained_size=96",
    "anyup.qk_dim=32",
    "anyup.window_ratio=0.1",  # more than its own patch in a 6x6 grid
    # CLIP's tokenizer, as the large presets have it.
    "prompting.context_length=77",
    "text.vocab_size=49408",
)
CLASSES = ("wall", "floor", "table", "person", "cup")


def small_config(*overrides: str) -> ModelConfig:
    return model_config("tiny", [*SMALL, *overrides])


def random_photo(height: int = 48, width: int = 64, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def small_request(**changes: Any) -> Request:
    """The cheapest build: one engine, fp32 graphs."""
    request = Request(
        config=small_config(),
        weights=RandomWeights(),
        weights_dir=None,
        refinement=True,
        halves=(),
        strict=False,
        runs=(("onnxruntime", "fp32"),),
        photo=random_photo(),
        calibration=(),
        scenes=(),
        classes=CLASSES,
        vocabularies=(),
        announce=lambda text: None,
    )
    return replace(request, **changes)
