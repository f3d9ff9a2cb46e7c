"""Configurations: presets, overrides, and values that do not fit together."""

from __future__ import annotations

import pytest

from export.presets import BACKBONES, PRESETS, SAMS, model_config
from runtime.errors import InputError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_consistent(name: str) -> None:
    config = model_config(name, [])
    assert config == PRESETS[name]
    assert config.geometry.grid % config.refinement.window_size == 0
    assert config.geometry.crops == 4


def test_the_papers_model() -> None:
    config = model_config("vitl", [])
    assert (config.backbone.arch, config.sam.arch) == ("vitl16", "vit_l")
    assert (config.geometry.image_size, config.geometry.crop_size, config.geometry.stride) == (640, 384, 256)
    assert (config.text.dim, config.text.num_heads, config.text.num_layers) == (1280, 20, 24)


@pytest.mark.parametrize("table", [BACKBONES, SAMS])
def test_heads_divide_widths(table: dict) -> None:
    for arch, part in table.items():
        assert part.arch == arch
        assert part.embed_dim % part.num_heads == 0


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("geometry.stride=64", ("geometry", "stride"), 64),
        ("sam.taps=[0, 2]", ("sam", "taps"), (0, 2)),
        ("sam.input_size=512", ("sam", "input_size"), 512),
        ("sam.input_size=null", ("sam", "input_size"), None),
        ("early_refinement=before_merge", ("early_refinement",), "before_merge"),
        ('training_free_text="mean"', ("training_free_text",), "mean"),
        ("prompting.template=a {} = one", ("prompting", "template"), "a {} = one"),
        ("prompting.first_synonym=true", ("prompting", "first_synonym"), True),
    ],
)
def test_override(override: str, path: tuple[str, ...], value: object) -> None:
    found: object = model_config("tiny", [override])
    for name in path:
        found = getattr(found, name)
    assert found == value
    assert model_config("tiny", []) == PRESETS["tiny"]


def test_sam_runs_at_the_image_size_unless_told() -> None:
    assert model_config("tiny", []).sam_size == 320
    assert model_config("tiny", ["sam.input_size=512"]).sam_size == 512


def test_the_last_override_wins() -> None:
    assert model_config("tiny", ["geometry.stride=64", "geometry.stride=32"]).geometry.stride == 32


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["geometry.strides=64"], "--set 'geometry.strides=64': expected FIELD=VALUE"),
        (["geometry.stride"], "--set 'geometry.stride': expected FIELD=VALUE"),
        (["stride=64"], "expected FIELD=VALUE"),
        (["geometry.stride.x=64"], "expected FIELD=VALUE"),
        (["nothing.at.all=1"], "expected FIELD=VALUE"),
        (["=1"], "expected FIELD=VALUE"),
        ([""], "expected FIELD=VALUE"),
        (["geometry.stride=many"], "geometry.stride: Input should be a valid integer"),
        (["geometry.stride=96"], "does not tile the image"),
        (["geometry.crop_size=640"], "crop_size 640 is larger than image_size 320"),
        (["refinement.window_size=7"], "window_size 7 does not divide the feature grid 20x20"),
        (["sam.input_size=100"], "sam.input_size is 100; expected a multiple of 16"),
        (["sam.taps=[3,1]"], "expected two ascending blocks below 4"),
        (["sam.taps=[1,4]"], "expected two ascending blocks below 4"),
        (["sam.taps=[1]"], "sam.taps"),
        (["early_refinement=sometimes"], "early_refinement: Input should be"),
        (["prompting.template=a photo"], "expected a {} for the class name"),
        (["backbone=3"], "backbone: Input should be"),
    ],
)
def test_bad_override(overrides: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        model_config("tiny", overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_preset() -> None:
    with pytest.raises(InputError, match="preset 'huge' does not exist; expected one of tiny, vits, vitb, vitl"):
        model_config("huge", [])
