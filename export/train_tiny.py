"""Trains the `tiny` model that the project ships, on procedural table-top scenes.

    python export/train_tiny.py align --work DIR     backbone and text, patch by patch

Every phase goes on where it was stopped; DIR lies outside the repository.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from export.models.dinotxt import TextEncoder, VisionHead
from export.presets import ModelConfig, model_config
from export.stages import build_backbone
from export.training.alignment import Alignment, AlignmentLoss, patch_accuracy
from export.training.data import SceneSet, class_shares, normalise, scene_set
from export.training.initial import start_patch_embedding, start_transformer
from export.training.loop import Schedule, train
from export.training.vocabulary import Words, taught_texts, words
from export.training.word_tokenizer import write_word_tokenizer
from runtime.text import Tokenizer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
CLASSES = 69
SEED = 2026
TINY = ["prompting.context_length=16", "text.vocab_size=31", "anyup.qk_dim=16"]


@app.callback()
def root() -> None:
    """Trains the shipped model, phase by phase."""


def setting(work: Path) -> tuple[ModelConfig, Words]:
    config = model_config("tiny", TINY)
    work.mkdir(parents=True, exist_ok=True)
    size = write_word_tokenizer(taught_texts(config.prompting), work / "tokenizer.json")
    assert size == config.text.vocab_size, f"text.vocab_size must be {size}"
    tokenizer = Tokenizer.from_file(work / "tokenizer.json", config.prompting.context_length)
    return config, words(tokenizer, config.prompting)


def scenes(work: Path, split: str, count: int, size: int) -> SceneSet:
    return scene_set(split, count, size, work / "scenes", lambda done: None)


def build_alignment(config: ModelConfig) -> Alignment:
    width = config.backbone.embed_dim
    text = TextEncoder(**config.text.model_dump(), embed_dim=2 * width, context_length=config.prompting.context_length)
    head = VisionHead(embed_dim=width, num_heads=config.backbone.num_heads)
    model = Alignment(build_backbone(config), head, text)
    start_transformer(model, torch.Generator().manual_seed(SEED))
    return model


@app.command()
def align(
    work: Annotated[Path, typer.Option(help="Folder for scenes, checkpoints and curves.")],
    steps: int = 6000,
    batch: int = 64,
    count: int = 6000,
    rate: float = 2e-3,
    name: str = "align",
) -> None:
    """Aligns patch features and class token with text."""
    torch.manual_seed(SEED)
    config, vocabulary = setting(work)
    size = config.geometry.image_size
    training, validation = scenes(work, "train", count, size), scenes(work, "val", 60, size)
    model = build_alignment(config)
    start_patch_embedding(model.backbone.patch_embed.proj, training.crops(np.random.default_rng(SEED), 256, 96)[0])
    loss = AlignmentLoss(vocabulary)
    checked = normalise(np.ascontiguousarray(validation.images))
    shares = class_shares(torch.from_numpy(validation.labels.astype(np.int64)), CLASSES, 16)
    start = time.monotonic()

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((SEED, step))
        # One step in six sees whole neighbourhoods: large objects do not fit into the small crop.
        side, number = (192, batch // 4) if step % 6 == 5 else (96, batch)
        images, labels = training.crops(rng, number, side)
        return loss(model, images, class_shares(labels, CLASSES, 16))

    def evaluate() -> dict[str, float]:
        return patch_accuracy(model, checked, shares, vocabulary) | {"minutes": (time.monotonic() - start) / 60}

    schedule = Schedule(steps, warmup=100, matrix_rate=rate, other_rate=rate)
    train(name, model, schedule, step_loss, evaluate, work, lambda step, parts: None, evaluate_every=100)


if __name__ == "__main__":
    app()
