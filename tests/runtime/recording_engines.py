"""Engines with simple arithmetic that record their calls, and what a pipeline around them needs."""

from __future__ import annotations

from typing import Any

import numpy as np
from small_models import random_photo

import kernels
from runtime.geometry import Geometry
from runtime.manifest import PipelineSpec

CHANNELS, GRID, CROP_GRID = 4, 6, 4
PERIODS = (1.0, 7.5)
Arrays = dict[str, np.ndarray]


def spec(**changes: Any) -> PipelineSpec:
    options: dict[str, Any] = {
        "geometry": Geometry(image_size=96, crop_size=64, stride=32),
        "sam_size": 96,
        "rope_periods": PERIODS,
        "prefix_tokens": 5,
        "early_refinement": "after_merge",
        "refinement": True,
        "pad_len": 0,
        "training_free_text": "local",
    }
    return PipelineSpec(**{**options, **changes})


class Engines:
    """Stages with simple arithmetic; `calls` holds (stage, inputs, outputs) in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Arrays, Arrays]] = []

    def __getitem__(self, stage: str) -> Any:
        def call(inputs: Arrays) -> Arrays:
            outputs = getattr(self, stage)(**inputs)
            self.calls.append((stage, dict(inputs), outputs))
            return outputs

        return call

    def of(self, stage: str) -> list[tuple[Arrays, Arrays]]:
        return [(inputs, outputs) for name, inputs, outputs in self.calls if name == stage]

    @property
    def order(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def backbone(self, image: np.ndarray, rope_sin: np.ndarray, rope_cos: np.ndarray) -> Arrays:
        patches = image.reshape(len(image), 3, image.shape[2] // 16, 16, -1, 16).mean(axis=(3, 5))
        flat = patches.reshape(len(image), 3, -1).transpose(0, 2, 1)
        assert rope_sin.shape == rope_cos.shape == (5 + flat.shape[1], 8)
        features = np.concatenate([flat, flat[..., :1] ** 2], axis=2)
        return {"features": np.ascontiguousarray(features, dtype=np.float32)}

    def anyup(self, image: np.ndarray, features: np.ndarray) -> Arrays:
        return {"refined": features + image.mean()}

    anyup_crop = anyup

    def correlation(self, features: np.ndarray, text: np.ndarray) -> Arrays:
        return {"correlation": (text @ features.T).reshape(len(text), 2, GRID, GRID)}

    def sam_encoder(self, image: np.ndarray) -> Arrays:
        return {f"guidance{i}": np.full((1, 2, GRID << i, GRID << i), image.mean() + i) for i in range(3)}

    def refinement(
        self, correlation: np.ndarray, guidance0: np.ndarray, text: np.ndarray, present: np.ndarray
    ) -> Arrays:
        assert present.tolist() == [1.0] * len(text)
        return {"class_features": correlation * 2}

    def decoder(self, class_features: np.ndarray, guidance1: np.ndarray, guidance2: np.ndarray) -> Arrays:
        assert guidance1.shape[2:] == (2 * GRID, 2 * GRID)
        assert guidance2.shape[2:] == (4 * GRID, 4 * GRID)
        return {"logits": class_features.mean(axis=1).repeat(4, axis=1).repeat(4, axis=2)}


def text(classes: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((classes, 2, CHANNELS)).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


PHOTO = random_photo(50, 70)
IMAGE, CROPS = kernels.preprocess(PHOTO, size=96, crop=64, stride=32)
