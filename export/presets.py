"""Model configurations: every number that the paper leaves open is a named field with the spec's default."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from runtime.errors import InputError
from runtime.geometry import Geometry
from runtime.manifest import EarlyRefinement, Prompting, TextHalf


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Backbone(_Config):
    """DINOv3 ViT. `arch` is the name in the official file names."""

    arch: str
    embed_dim: int
    depth: int
    num_heads: int
    ffn: Literal["mlp", "swiglu"] = "mlp"
    ffn_ratio: float = 4.0
    ffn_align: int = 8
    qkv_bias: bool = True


BACKBONES = {
    backbone.arch: backbone
    for backbone in (
        Backbone(arch="tiny", embed_dim=192, depth=6, num_heads=3),
        Backbone(arch="vits16", embed_dim=384, depth=12, num_heads=6),
        Backbone(arch="vits16plus", embed_dim=384, depth=12, num_heads=6, ffn="swiglu", ffn_ratio=6),
        Backbone(arch="vitb16", embed_dim=768, depth=12, num_heads=12),
        Backbone(arch="vitl16", embed_dim=1024, depth=24, num_heads=16),
        Backbone(arch="vitl16plus", embed_dim=1024, depth=24, num_heads=16, ffn="swiglu", ffn_ratio=6),
        Backbone(arch="vith16plus", embed_dim=1280, depth=32, num_heads=20, ffn="swiglu", ffn_ratio=6),
        Backbone(
            arch="vit7b16",
            embed_dim=4096,
            depth=40,
            num_heads=32,
            ffn="swiglu",
            ffn_ratio=3,
            ffn_align=64,
            qkv_bias=False,
        ),
    )
}


class Text(_Config):
    """dino.txt text encoder. Its embeddings are twice as wide as the backbone: global and local half."""

    dim: int
    num_heads: int
    num_layers: int
    vocab_size: int = 49408


class AnyUp(_Config):
    qk_dim: int = 128
    num_heads: int = 4
    window_ratio: float = 0.1
    kernel_size_lfu: int = 5


class Sam(_Config):
    """SAM image encoder as guidance. `input_size` None: the model's image size.

    `taps` are the blocks whose outputs become the guidance at 1/8 and 1/4.
    """

    arch: str
    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    taps: tuple[int, int]
    window_size: int = 14
    out_chans: int = 256
    pretrained_size: int = 1024
    input_size: int | None = None


SAMS = {
    sam.arch: sam
    for sam in (
        Sam(
            arch="tiny",
            embed_dim=128,
            depth=4,
            num_heads=2,
            global_attn_indexes=(1, 3),
            taps=(1, 3),
            window_size=7,
            out_chans=64,
            pretrained_size=320,
        ),
        Sam(
            arch="vit_b",
            embed_dim=768,
            depth=12,
            num_heads=12,
            global_attn_indexes=(2, 5, 8, 11),
            taps=(3, 7),
        ),
        Sam(
            arch="vit_l",
            embed_dim=1024,
            depth=24,
            num_heads=16,
            global_attn_indexes=(5, 11, 17, 23),
            taps=(7, 15),
        ),
        Sam(
            arch="vit_h",
            embed_dim=1280,
            depth=32,
            num_heads=16,
            global_attn_indexes=(7, 15, 23, 31),
            taps=(10, 20),
        ),
    )
}


class Refinement(_Config):
    """CAT-Seg aggregator (its ViT-L configuration), window fitted to the 40x40 grid."""

    hidden_dim: int = 128
    nheads: int = 4
    num_layers: int = 2
    window_size: int = 10
    pooling_size: tuple[int, int] = (2, 2)
    attention_type: Literal["linear", "full"] = "linear"
    pad_len: int = Field(default=256, ge=0)
    guidance_proj_dim: int = 128
    decoder_dims: tuple[int, int] = (64, 32)
    decoder_guidance_dims: tuple[int, int] = (256, 128)
    decoder_guidance_proj_dims: tuple[int, int] = (32, 16)


class ModelConfig(_Config):
    """One dinov3.seg model. `early_refinement` says where AnyUp acts: on the merged map, on each view, nowhere."""

    name: str
    geometry: Geometry = Geometry()
    backbone: Backbone
    text: Text
    anyup: AnyUp = AnyUp()
    sam: Sam
    refinement: Refinement = Refinement()
    early_refinement: EarlyRefinement = "after_merge"
    training_free_text: TextHalf = "local"
    prompting: Prompting = Prompting()

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        for part in (self.backbone, self.text, self.sam):
            width = part.dim if isinstance(part, Text) else part.embed_dim
            if width % part.num_heads:
                raise ValueError(f"{type(part).__name__}: {part.num_heads} heads do not divide {width} channels")
        if self.refinement.hidden_dim % self.refinement.nheads:
            raise ValueError("refinement.nheads does not divide refinement.hidden_dim")
        if any(dim % 16 or not dim for dim in self.refinement.decoder_dims):
            raise ValueError(f"refinement.decoder_dims is {self.refinement.decoder_dims}; expected multiples of 16")
        grid, window = self.geometry.grid, self.refinement.window_size
        if window < grid and grid % window:
            raise ValueError(f"refinement.window_size {window} does not divide the feature grid {grid}x{grid}")
        if self.sam_size % self.geometry.patch_size:
            raise ValueError(f"sam.input_size is {self.sam_size}; expected a multiple of {self.geometry.patch_size}")
        low, high = self.sam.taps
        if not 0 <= low < high < self.sam.depth:
            raise ValueError(f"sam.taps is {self.sam.taps}; expected two ascending blocks below {self.sam.depth}")
        if "{}" not in self.prompting.template:
            raise ValueError(f"prompting.template is {self.prompting.template!r}; expected a {{}} for the class name")
        return self

    @property
    def sam_size(self) -> int:
        return self.sam.input_size or self.geometry.image_size


PRESETS = {
    preset.name: preset
    for preset in (
        ModelConfig(
            name="tiny",
            geometry=Geometry(image_size=320, crop_size=192, stride=128),
            backbone=BACKBONES["tiny"],
            text=Text(dim=128, num_heads=2, num_layers=4, vocab_size=31),
            prompting=Prompting(context_length=16),
            anyup=AnyUp(qk_dim=16, window_ratio=0.05),
            sam=SAMS["tiny"],
            refinement=Refinement(
                hidden_dim=32,
                pad_len=0,
                guidance_proj_dim=32,
                decoder_dims=(32, 16),
                decoder_guidance_dims=(32, 16),
                decoder_guidance_proj_dims=(16, 8),
            ),
        ),
        ModelConfig(
            name="vits",
            backbone=BACKBONES["vits16"],
            text=Text(dim=384, num_heads=6, num_layers=12),
            sam=SAMS["vit_b"],
        ),
        ModelConfig(
            name="vitb",
            backbone=BACKBONES["vitb16"],
            text=Text(dim=768, num_heads=12, num_layers=12),
            sam=SAMS["vit_b"],
        ),
        ModelConfig(
            name="vitl",
            backbone=BACKBONES["vitl16"],
            text=Text(dim=1280, num_heads=20, num_layers=24),
            sam=SAMS["vit_l"],
        ),
    )
}


def model_config(preset: str, overrides: list[str]) -> ModelConfig:
    """A preset with fields replaced, e.g. `geometry.stride=128` or `sam.taps=[5,11]`.

    Raises:
        InputError: an unknown preset or field, or values that do not fit together.
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r} does not exist; expected one of {', '.join(PRESETS)}")
    content = PRESETS[preset].model_dump()
    for override in overrides:
        _replace(content, override)
    try:
        return ModelConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"configuration: {where + ': ' if where else ''}{first['msg']}") from None


def _replace(content: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    *parents, field = path.split(".")
    node = content
    for parent in parents:
        node = node.get(parent, {})
    if not separator or not isinstance(node, dict) or field not in node:
        raise InputError(f"--set {override!r}: expected FIELD=VALUE, for example geometry.stride=128")
    try:
        node[field] = json.loads(text)
    except ValueError:
        node[field] = text
