"""The stage table: every stage's module, named inputs and outputs with their axes. The single source of truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from export.models.anyup import AnyUp
from export.models.backbone import DinoVisionTransformer
from export.models.dinotxt import PatchFeatures, TextEncoder, VisionHead
from export.models.refinement import Aggregator, Correlation, Decoder, Refinement
from export.models.sam import SamGuidance
from export.presets import ModelConfig
from runtime.manifest import TensorSpec

Axis = int | str


class Weights(Protocol):
    """Where weights come from: `checkpoints.CheckpointFolder` or `random_weights.RandomWeights`."""

    random: bool

    def fill(self, module: nn.Module, part: str) -> None: ...

    def checksums(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Stage:
    """One graph. `build` makes its module with weights, in eval mode; only one need be in memory at a time."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    build: Callable[[Weights], nn.Module]


def stage_table(config: ModelConfig, refinement: bool) -> tuple[Stage, ...]:
    """The stages of a model in the order of the data. Without refinement: those of the training-free pipeline."""
    stages = [text_encoder(config), backbone(config)]
    geometry = config.geometry
    if config.early_refinement != "none":
        stages.append(anyup(config, "anyup", geometry.image_size, geometry.grid))
    if config.early_refinement == "before_merge":
        stages.append(anyup(config, "anyup_crop", geometry.crop_size, geometry.crop_grid))
    stages.append(correlation(config))
    if refinement:
        stages += [sam_encoder(config), refine(config), decoder(config)]
    return tuple(stages)


def _float(name: str, *shape: Axis) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def text_encoder(config: ModelConfig) -> Stage:
    def build(weights: Weights) -> nn.Module:
        module = TextEncoder(
            **config.text.model_dump(),
            embed_dim=2 * config.backbone.embed_dim,
            context_length=config.prompting.context_length,
        )
        weights.fill(module, "text_encoder")
        return module

    ids = TensorSpec(name="token_ids", dtype="int64", shape=("classes", config.prompting.context_length))
    return Stage("text_encoder", (ids,), (_float("text", "classes", 2, config.backbone.embed_dim),), build)


def build_backbone(config: ModelConfig) -> DinoVisionTransformer:
    return DinoVisionTransformer(**config.backbone.model_dump(exclude={"arch"}), patch_size=config.geometry.patch_size)


def backbone(config: ModelConfig) -> Stage:
    """One graph for crops and the whole image: the rotary tables are inputs, batch and size are dynamic."""
    width, heads = config.backbone.embed_dim, config.backbone.num_heads

    def build(weights: Weights) -> nn.Module:
        vit = build_backbone(config)
        head = VisionHead(embed_dim=width, num_heads=heads)
        weights.fill(vit, "backbone")
        weights.fill(head, "vision_head")
        return PatchFeatures(vit, head).eval()

    tables = tuple(_float(name, "tokens", width // heads) for name in ("rope_sin", "rope_cos"))
    return Stage(
        "backbone",
        (_float("image", "batch", 3, "height", "width"), *tables),
        (_float("features", "batch", "patches", width),),
        build,
    )


class TokenAnyUp(nn.Module):
    """AnyUp between token-major features, the layout that the merge writes and the correlation reads."""

    def __init__(self, anyup: AnyUp, grid: int) -> None:
        super().__init__()
        self.anyup = anyup
        self.grid = grid

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        maps = features.transpose(1, 2).reshape(features.shape[0], -1, self.grid, self.grid)
        refined: Tensor = self.anyup(image, maps)
        return refined.flatten(2).transpose(1, 2)


def anyup(config: ModelConfig, name: str, size: int, grid: int) -> Stage:
    def build(weights: Weights) -> nn.Module:
        module = AnyUp(image_size=size, feature_size=grid, output_size=grid, **config.anyup.model_dump())
        weights.fill(module, "anyup")
        return TokenAnyUp(module, grid).eval()

    batch: Axis = 1 if name == "anyup" else config.geometry.crops
    tokens = (batch, grid * grid, config.backbone.embed_dim)
    return Stage(
        name,
        (_float("image", batch, 3, size, size), _float("features", *tokens)),
        (_float("refined", *tokens),),
        build,
    )


def correlation(config: ModelConfig) -> Stage:
    grid, width = config.geometry.grid, config.backbone.embed_dim
    return Stage(
        "correlation",
        (_float("features", grid * grid, width), _float("text", "classes", 2, width)),
        (_float("correlation", "classes", 2, grid, grid),),
        lambda weights: Correlation((grid, grid)).eval(),
    )


def guidance_specs(config: ModelConfig) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """Maps at 1/16, 1/8 and 1/4."""
    grid = config.geometry.grid
    channels = (config.sam.out_chans, *config.refinement.decoder_guidance_dims)
    first, second, third = (_float(f"guidance{i}", 1, channels[i], grid << i, grid << i) for i in range(3))
    return first, second, third


def sam_encoder(config: ModelConfig) -> Stage:
    size = config.sam_size

    def build(weights: Weights) -> nn.Module:
        module = SamGuidance(
            image_size=size,
            grid=config.geometry.grid,
            guidance_dims=config.refinement.decoder_guidance_dims,
            **config.sam.model_dump(exclude={"arch", "input_size"}),
        )
        weights.fill(module, "guidance")
        return module

    return Stage("sam_encoder", (_float("image", 1, 3, size, size),), guidance_specs(config), build)


def build_aggregator(config: ModelConfig, weights: Weights) -> Aggregator:
    head, grid = config.refinement, config.geometry.grid
    module = Aggregator(
        feature_resolution=(grid, grid),
        text_guidance_dim=config.backbone.embed_dim,
        text_guidance_proj_dim=head.guidance_proj_dim,
        appearance_guidance_dim=config.sam.out_chans,
        appearance_guidance_proj_dim=head.guidance_proj_dim,
        **head.model_dump(exclude={"guidance_proj_dim"}),
    )
    weights.fill(module, "head")
    return module


def class_features_spec(config: ModelConfig) -> TensorSpec:
    grid = config.geometry.grid
    return _float("class_features", "classes", config.refinement.hidden_dim, grid, grid)


def refine(config: ModelConfig) -> Stage:
    grid = config.geometry.grid
    return Stage(
        "refinement",
        (
            _float("correlation", "classes", 2, grid, grid),
            guidance_specs(config)[0],
            _float("text", "classes", 2, config.backbone.embed_dim),
            _float("present", "classes"),
        ),
        (class_features_spec(config),),
        lambda weights: Refinement(build_aggregator(config, weights)).eval(),
    )


def decoder(config: ModelConfig) -> Stage:
    size = 4 * config.geometry.grid
    return Stage(
        "decoder",
        (class_features_spec(config), *guidance_specs(config)[1:]),
        (_float("logits", "classes", size, size),),
        lambda weights: Decoder(build_aggregator(config, weights)).eval(),
    )
