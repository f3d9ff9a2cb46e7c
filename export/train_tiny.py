"""Trains the `tiny` model that the project ships, on procedural table-top scenes.

    python export/train_tiny.py align --work DIR     backbone, vision head and text encoder, patch by patch
    python export/train_tiny.py early --work DIR     AnyUp, on the aligned features
    python export/train_tiny.py head  --work DIR     guidance encoder and refinement head
    python export/train_tiny.py save  --work DIR --out WEIGHTS     files under their official names, fp16

Every phase goes on where it was stopped; DIR lies outside the repository.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.scene_vocabulary import VOCABULARY
from benchmarks.scenes import make_scene
from export.checkpoints import CheckpointFolder
from export.models.anyup import AnyUp
from export.models.dinotxt import TextEncoder, VisionHead
from export.models.sam import SamGuidance
from export.presets import PRESETS, ModelConfig
from export.shipped import CLASSES as CLASSES_FILE
from export.shipped import EXAMPLE
from export.stages import build_aggregator, build_backbone
from export.training.alignment import PATCH, Alignment, AlignmentLoss, Window, patch_accuracy
from export.training.curves import draw_curves
from export.training.data import SceneSet, class_shares, normalise, scene_set
from export.training.early import EarlyLoss, EarlyRefinement
from export.training.features import refined_features
from export.training.head import GuidedHead, HeadLoss, map_accuracy
from export.training.initial import fix_relative_positions, start_anyup, start_patch_embedding, start_transformer
from export.training.loop import Schedule, train
from export.training.shipping import FreshWeights, save_weights
from export.training.vocabulary import Words, taught_texts, words
from export.training.word_tokenizer import write_word_tokenizer
from runtime.bundle import sha256
from runtime.cli import one_line_errors
from runtime.errors import InputError
from runtime.text import Tokenizer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
CLASSES = len(VOCABULARY)
SEED = 2026
EXAMPLE_SEED = 5

# Small crops teach most for their cost; large objects need larger ones, and attention the length that it will have.
SIDES = (96, 128, 96, 192, 96, 128, 96, 192, 96, 128, 192, 320)

Work = Annotated[Path, typer.Option(help="Folder for scenes, checkpoints and curves.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


@app.callback()
def root() -> None:
    """Trains the shipped model, phase by phase."""


def setting(work: Path) -> tuple[ModelConfig, Words]:
    config = PRESETS["tiny"]
    work.mkdir(parents=True, exist_ok=True)
    size = write_word_tokenizer(taught_texts(config.prompting), work / "tokenizer.json")
    assert size == config.text.vocab_size, f"text.vocab_size must be {size}"
    tokenizer = Tokenizer.from_file(work / "tokenizer.json", config.prompting.context_length)
    return config, words(tokenizer, config.prompting)


def scenes(work: Path, split: str, count: int, size: int) -> SceneSet:
    return scene_set(split, count, size, work / "scenes")


def build_alignment(config: ModelConfig) -> Alignment:
    width = config.backbone.embed_dim
    text = TextEncoder(**config.text.model_dump(), embed_dim=2 * width, context_length=config.prompting.context_length)
    head = VisionHead(embed_dim=width, num_heads=config.backbone.num_heads)
    model = Alignment(build_backbone(config), head, text)
    start_transformer(model, torch.Generator().manual_seed(SEED))
    return model


def random_window(rng: np.random.Generator, size: int, config: ModelConfig) -> Window:
    """Somewhere in the patch grid of a crop or of the whole image, where `size` fits."""
    geometry = config.geometry
    grids = [side // PATCH for side in (geometry.crop_size, geometry.image_size) if side // PATCH >= size]
    grid = int(rng.choice(grids))
    row, column = rng.integers(grid - size + 1, size=2)
    return Window((grid, grid), int(row), int(column))


def build_early(config: ModelConfig, side: int) -> EarlyRefinement:
    grid = side // PATCH
    anyup = AnyUp(image_size=side, feature_size=grid, output_size=grid, **config.anyup.model_dump())
    start_anyup(anyup, torch.Generator().manual_seed(SEED))
    return EarlyRefinement(anyup, grid)


def build_head(config: ModelConfig) -> GuidedHead:
    guidance = SamGuidance(
        image_size=config.sam_size,
        grid=config.geometry.grid,
        guidance_dims=config.refinement.decoder_guidance_dims,
        **config.sam.model_dump(exclude={"arch", "input_size"}),
    )
    model = GuidedHead(guidance, build_aggregator(config, FreshWeights()))
    generator = torch.Generator().manual_seed(SEED)
    start_transformer(model.guidance.image_encoder, generator)
    fix_relative_positions(model.guidance.image_encoder, generator)
    return model


def go_on_from(model: Alignment, weights: CheckpointFolder) -> None:
    """Begins a new round of training where committed weights ended."""
    weights.fill(model.backbone, "backbone")
    weights.fill(model.head, "vision_head")
    weights.fill(model.text_encoder, "text_encoder")
    model.requires_grad_(True)
    model.train()


def load_phase(model: torch.nn.Module, work: Path, name: str) -> None:
    """The weights of a finished phase, frozen.

    Raises:
        InputError: the phase has not been trained.
    """
    file = work / f"{name}.pt"
    if not file.exists():
        raise InputError(f"{file} does not exist; train it first: python export/train_tiny.py {name} --work {work}")
    model.load_state_dict(torch.load(file, weights_only=True, map_location="cpu")["model"])
    model.requires_grad_(False)
    model.eval()


def chosen_device(name: str) -> torch.device:
    """
    Raises:
        InputError: neither cpu nor cuda, or there is no GPU that torch can use.
    """
    if name not in ("cpu", "cuda"):
        raise InputError(f"--device is {name!r}; expected cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; leave it out to train on the CPU")
    return torch.device(name)


def minutes() -> Callable[[], float]:
    start = time.monotonic()
    return lambda: (time.monotonic() - start) / 60


@app.command()
@one_line_errors()
def align(
    work: Work,
    steps: int = 6000,
    batch: int = 96,
    count: int = 6000,
    rate: float = 2e-3,
    start: Annotated[Path | None, typer.Option(help="Folder of saved weights to begin with.")] = None,
    device: Device = "cpu",
) -> None:
    """Aligns patch features and class token with text."""
    torch.manual_seed(SEED)
    config, vocabulary = setting(work)
    place = chosen_device(device)
    size, taken = config.geometry.image_size, minutes()
    training, validation = scenes(work, "train", count, size), scenes(work, "val", 60, size)
    model = build_alignment(config)
    if start is None:
        start_patch_embedding(model.backbone.patch_embed.proj, training.crops(np.random.default_rng(SEED), 256, 96)[0])
    else:
        go_on_from(model, CheckpointFolder(start, config))
    model.to(place)
    loss = AlignmentLoss(vocabulary.to(place))
    images = normalise(validation.images).to(place)
    shares = class_shares(torch.from_numpy(validation.labels.astype(np.int64)), CLASSES, PATCH)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((SEED, step))
        side = SIDES[step % len(SIDES)]
        crops, labels = training.crops(rng, round(batch * (96 / side) ** 2), side)
        return loss(model, crops.to(place), labels, random_window(rng, side // PATCH, config))

    def evaluate() -> dict[str, float]:
        return patch_accuracy(model, images, shares, loss.words) | {"minutes": taken()}

    schedule = Schedule(steps, warmup=100, matrix_rate=rate, other_rate=rate)
    train("align", model, schedule, step_loss, evaluate, work, evaluate_every=100)


@app.command()
@one_line_errors()
def early(
    work: Work, steps: int = 400, batch: int = 4, count: int = 6000, rate: float = 1e-2, device: Device = "cpu"
) -> None:
    """Teaches AnyUp to sharpen the aligned features, on crops: its weights fit any size."""
    torch.manual_seed(SEED + 1)
    config, vocabulary = setting(work)
    place = chosen_device(device)
    side, taken = config.geometry.crop_size, minutes()
    alignment, model = build_alignment(config), build_early(config, side)
    load_phase(alignment.to(place), work, "align")
    training = scenes(work, "train", count, config.geometry.image_size)
    model.to(place)
    loss = EarlyLoss(alignment, vocabulary.to(place))

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        crops, labels = training.crops(np.random.default_rng((SEED + 1, step)), batch, side)
        return loss(model, crops.to(place), class_shares(labels, CLASSES, PATCH))

    schedule = Schedule(steps, warmup=20, matrix_rate=rate, other_rate=rate)
    train("early", model, schedule, step_loss, lambda: {"minutes": taken()}, work, evaluate_every=50)


@app.command()
@one_line_errors()
def head(
    work: Work,
    steps: int = 3000,
    batch: int = 4,
    count: int = 2000,
    candidates: int = 16,
    rate: float = 2e-3,
    device: Device = "cpu",
) -> None:
    """Trains guidance encoder and refinement head on features of the whole pipeline."""
    torch.manual_seed(SEED + 2)
    config, vocabulary = setting(work)
    place = chosen_device(device)
    size, taken = config.geometry.image_size, minutes()
    alignment, anyup = build_alignment(config), build_early(config, size)
    load_phase(alignment.to(place), work, "align")
    load_phase(anyup.to(place), work, "early")
    training, validation = scenes(work, "train", count, size), scenes(work, "val", 24, size)
    made_by = sha256(work / "align.pt")[:8] + sha256(work / "early.pt")[:8]
    features, checked = (
        refined_features(
            alignment, anyup, photos, config.geometry, work / f"features-{split}-{len(photos.images)}-{made_by}.npy"
        )
        for split, photos in (("train", training), ("val", validation))
    )
    with torch.inference_mode():
        text = alignment.text_encoder(vocabulary.all_ids.to(place)).clone()
    model, loss = build_head(config).to(place), HeadLoss(vocabulary, text)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((SEED + 2, step))
        chosen = np.sort(rng.choice(count, batch, replace=False))
        labels = torch.from_numpy(training.labels[chosen].astype(np.int64))
        classes = torch.stack([loss.candidates(label, rng, candidates) for label in labels])
        images = normalise(training.images[chosen]).to(place)
        refined = torch.from_numpy(features[chosen].astype(np.float32)).to(place)
        return loss(model, images, refined, labels, classes)

    def evaluate() -> dict[str, float]:
        return map_accuracy(model, validation, checked, text, vocabulary) | {"minutes": taken()}

    schedule = Schedule(steps, warmup=50, matrix_rate=rate, other_rate=rate)
    train("head", model, schedule, step_loss, evaluate, work, evaluate_every=250)


@app.command()
@one_line_errors()
def save(work: Work, out: Annotated[Path, typer.Option(help="Folder for the weight files.")]) -> None:
    """Writes what has been trained so far as fp16 safetensors under the official names."""
    config, _ = setting(work)
    modules = {"align": build_alignment(config), "early": build_early(config, config.geometry.image_size)}
    modules["head"] = build_head(config)
    for name in list(modules):
        if not (work / f"{name}.pt").exists():
            del modules[name]
            continue
        load_phase(modules[name], work, name)
    save_weights(modules, work / "tokenizer.json", out)
    (out / CLASSES_FILE).write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    example = make_scene(EXAMPLE_SEED, config.geometry.image_size, "test").image
    twice = cv2.resize(example[..., ::-1], None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)  # room for a legend
    cv2.imwrite(str(out / EXAMPLE), twice, [cv2.IMWRITE_JPEG_QUALITY, 92])
    draw_curves(work, out / "curves.png")


if __name__ == "__main__":
    app()
