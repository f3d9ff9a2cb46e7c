"""Official weight files: found by name, loaded strictly, and every problem named with file, key and advice."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import official_files
import pytest
import torch
from official_files import FILES, PERIODS, official_states, parts_of, write, write_official_files
from small_models import small_config, small_request
from torch import Tensor, nn

from export import stages
from export.builder import pipeline_spec
from export.checkpoints import CheckpointFolder, load_state, read_state
from export.models.anyup import AnyUp
from export.models.backbone import DinoVisionTransformer
from export.models.dinotxt import TextEncoder, VisionHead
from export.models.refinement import Aggregator
from export.models.sam import SamGuidance
from export.presets import BACKBONES, SAMS
from runtime.bundle import sha256
from runtime.errors import WeightsError

CONFIG = small_config()
States = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def states() -> States:
    return official_states(CONFIG)


@pytest.fixture(scope="module")
def reference() -> dict[str, nn.Module]:
    """The modules that the files were made from; the backbone's k bias is masked there too."""
    parts = parts_of(CONFIG)
    with torch.no_grad():
        for block in parts["backbone"].blocks:  # type: ignore[union-attr]
            block.attn.qkv.bias[192:384] = 0
    return parts


@pytest.fixture
def folder(tmp_path: Path, states: States) -> Path:
    """All files; tests alter their own copy."""
    for file, state in states.items():
        write(tmp_path / FILES[file], state)
    return tmp_path


def load_all(folder: Path) -> dict[str, nn.Module]:
    weights = CheckpointFolder(folder, CONFIG)
    table = {stage.name: stage for stage in stages.stage_table(CONFIG, refinement=True)}
    return {name: stage.build(weights) for name, stage in table.items()}


def equal(found: nn.Module, expected: nn.Module) -> bool:
    left, right = found.state_dict(), expected.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_part_gets_its_weights(
    suffix: str, tmp_path: Path, states: States, reference: dict[str, nn.Module]
) -> None:
    write_official_files(tmp_path, CONFIG, suffix)
    found = load_all(tmp_path)
    assert equal(found["backbone"].backbone, reference["backbone"])
    assert equal(found["backbone"].head, reference["vision_head"])
    assert equal(found["text_encoder"], reference["text_encoder"])
    assert equal(found["anyup"].anyup, reference["anyup"])
    assert equal(found["refinement"].aggregator, reference["head"])
    assert equal(found["decoder"].aggregator, reference["head"])
    guidance = found["sam_encoder"].state_dict()
    assert torch.equal(guidance["upsample1.weight"], states["refinement"]["spe.upsample1.weight"])
    assert torch.equal(guidance["image_encoder.pos_embed"], states["sam"]["image_encoder.pos_embed"])
    assert not any(p.requires_grad for module in found.values() for p in module.parameters())


def test_loaded_modules_compute_the_same(folder: Path, reference: dict[str, nn.Module]) -> None:
    found = load_all(folder)["text_encoder"]
    ids = torch.randint(1, 49408, (3, 77), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(found(ids), reference["text_encoder"](ids))


def test_the_periods_of_the_file_reach_the_manifest(folder: Path) -> None:
    spec = pipeline_spec(small_request(weights=CheckpointFolder(folder, CONFIG)))
    assert spec.rope_periods == PERIODS


def test_checksums_of_the_files_that_were_used(folder: Path) -> None:
    weights = CheckpointFolder(folder, CONFIG)
    assert weights.checksums() == {}
    assert not weights.random
    stages.backbone(CONFIG).build(weights)
    used = [FILES["backbone"], FILES["dinotxt"]]
    assert weights.checksums() == {name: sha256(folder / name) for name in used}


def test_half_precision_weights_become_float32(folder: Path, states: States) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        write(folder / FILES["anyup"], {key: value.to(dtype) for key, value in states["anyup"].items()})
        module = load_all(folder)["anyup"].anyup
        assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
        key = "aggregation.0.weight"
        assert torch.equal(module.state_dict()[key], states["anyup"][key].to(dtype).float())


def test_the_old_file_format(folder: Path, states: States, reference: dict[str, nn.Module]) -> None:
    torch.save(states["anyup"], folder / FILES["anyup"], _use_new_zipfile_serialization=False)
    assert equal(load_all(folder)["anyup"].anyup, reference["anyup"])


# --- problems


def problem(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_all(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file(file: str, folder: Path) -> None:
    (folder / FILES[file]).unlink()
    error = problem(folder)
    assert f"{folder}: no " in error
    assert f"for the {file} weights" in error
    assert ("choose --refinement none" in error) == (file == "refinement")


def test_the_training_free_pipeline_needs_no_refinement_file(folder: Path) -> None:
    for file in ("refinement", "sam"):
        (folder / FILES[file]).unlink()
    weights = CheckpointFolder(folder, CONFIG)
    for stage in stages.stage_table(CONFIG, refinement=False):
        stage.build(weights)
    assert set(weights.checksums()) == {FILES["backbone"], FILES["dinotxt"], FILES["anyup"]}


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--weights .*nowhere: no such folder; give the folder"):
        CheckpointFolder(tmp_path / "nowhere", CONFIG)


def test_two_files_that_match(folder: Path, states: States) -> None:
    write(folder / "dinov3_tiny_pretrain_lvd1689m-eadcf0ff.pth", states["backbone"])
    error = problem(folder)
    assert "2 files match dinov3_tiny_pretrain_lvd1689m*" in error
    assert FILES["backbone"] in error
    assert "lvd1689m-eadcf0ff.pth" in error
    assert "keep one" in error


def test_a_more_specific_name_wins(folder: Path, states: States) -> None:
    write(folder / "anyup_paper.pth", {"not": torch.ones(1)})
    load_all(folder)


class Attack:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("pwned",)


DAMAGE: dict[str, tuple[Callable[[Path, dict[str, Tensor]], object], str]] = {
    "truncated": (lambda path, state: os.truncate(path, path.stat().st_size // 2), "download it again"),
    "empty": (lambda path, state: path.write_bytes(b""), "download it again"),
    "a web page": (lambda path, state: path.write_text("<html>Sign in"), "download the official file again"),
    "code": (lambda path, state: torch.save(state | {"x": Attack()}, path), "could run code and are never loaded"),
    "bare code": (lambda path, state: path.write_bytes(pickle.dumps(Attack())), "could run code and are never loaded"),
    "nested": (lambda path, state: torch.save({"model": state}, path), "is not a flat state dict of tensors"),
    "a list": (lambda path, state: torch.save(list(state.values()), path), "is not a flat state dict of tensors"),
    "numbered": (lambda path, state: torch.save({0: torch.ones(1)}, path), "is not a flat state dict of tensors"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("damage", DAMAGE)
def test_an_unreadable_file(damage: str, folder: Path, states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    path = folder / FILES["backbone"]
    act, words = DAMAGE[damage]
    act(path, states["backbone"])
    error = problem(folder)
    assert str(path) in error
    assert words in error
    assert "weights_only" not in error
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"<html>Sign in to download</html>"])
def test_unreadable_safetensors(content: bytes, folder: Path) -> None:
    (folder / FILES["backbone"]).unlink()
    path = (folder / FILES["backbone"]).with_suffix(".safetensors")
    path.write_bytes(content)
    error = problem(folder)
    assert f"{path} cannot be read as safetensors" in error
    assert "download it again" in error


KEYS = {
    "backbone": "blocks.1.mlp.fc1.weight",
    "dinotxt": "text_model.backbone.blocks.0.attention.qkv.weight",
    "anyup": "key_features_encoder.0.basis",
    "sam": "image_encoder.blocks.1.attn.rel_pos_h",
    "refinement": "head.layers.1.attention.attention.q.weight",
}
PREFIXES = ("visual_model.head.", "text_model.", "head.")


def inner(key: str) -> str:
    return next((key.removeprefix(prefix) for prefix in PREFIXES if key.startswith(prefix)), key)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_key(file: str, folder: Path, states: States) -> None:
    write(folder / FILES[file], {key: value for key, value in states[file].items() if key != KEYS[file]})
    error = problem(folder)
    assert FILES[file] in error
    assert f"missing: {inner(KEYS[file])}" in error


@pytest.mark.parametrize("file", FILES)
def test_a_wrong_shape(file: str, folder: Path, states: States) -> None:
    value = states[file][KEYS[file]]
    write(folder / FILES[file], states[file] | {KEYS[file]: value[..., :-1].contiguous()})
    error = problem(folder)
    assert FILES[file] in error
    assert f"wrong shape: {inner(KEYS[file])} is " in error


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("beside", [True, False], ids=["inside a part", "beside the parts"])
def test_an_unexpected_key(file: str, beside: bool, folder: Path, states: States) -> None:
    key = KEYS[file] + "_ema" if beside else "optimizer.step"
    write(folder / FILES[file], states[file] | {key: torch.ones(1)})
    error = problem(folder)
    assert FILES[file] in error
    assert f"unexpected: {inner(key)}" in error


def test_many_problems_are_counted_not_listed(folder: Path, states: States) -> None:
    write(folder / FILES["backbone"], {"cls_token": states["backbone"]["cls_token"]})
    assert " more" in problem(folder)
    assert len(problem(folder)) < 1000


# --- official keys and shapes, from the published code

LAYOUTS: list[tuple[str, Callable[[], nn.Module], dict[str, tuple[int, ...]]]] = [
    (
        "vitl16",
        lambda: DinoVisionTransformer(**BACKBONES["vitl16"].model_dump(exclude={"arch"})),
        {
            "cls_token": (1, 1, 1024),
            "storage_tokens": (1, 4, 1024),
            "patch_embed.proj.weight": (1024, 3, 16, 16),
            "rope_embed.periods": (16,),
            "blocks.23.attn.qkv.bias": (3072,),
            "blocks.0.ls1.gamma": (1024,),
            "blocks.0.mlp.fc1.weight": (4096, 1024),
            "norm.bias": (1024,),
        },
    ),
    (
        "vith16plus",
        lambda: DinoVisionTransformer(**BACKBONES["vith16plus"].model_dump(exclude={"arch"})),
        {"blocks.31.mlp.w1.weight": (5120, 1280), "blocks.0.mlp.w3.bias": (1280,), "rope_embed.periods": (16,)},
    ),
    (
        "vit7b16",
        lambda: DinoVisionTransformer(**BACKBONES["vit7b16"].model_dump(exclude={"arch"})),
        {"blocks.39.mlp.w2.weight": (8192, 4096), "blocks.0.attn.proj.bias": (4096,), "rope_embed.periods": (32,)},
    ),
    (
        "dino.txt head",
        lambda: VisionHead(embed_dim=1024, num_heads=16),
        {
            "ln_final.weight": (1024,),
            "blocks.1.attn.qkv.weight": (3072, 1024),
            "blocks.0.mlp.w1.weight": (2752, 1024),
            "blocks.0.mlp.w3.weight": (1024, 2752),
            "blocks.1.ls2.gamma": (1024,),
        },
    ),
    (
        "dino.txt text",
        TextEncoder,
        {
            "backbone.positional_embedding": (77, 1280),
            "backbone.token_embedding.weight": (49408, 1280),
            "backbone.blocks.23.attention_norm.weight": (1280,),
            "backbone.blocks.0.attention.qkv.weight": (3840, 1280),
            "backbone.blocks.0.feed_forward.fc1.weight": (5120, 1280),
            "backbone.ln_final.bias": (1280,),
            "head.linear_projection.weight": (2048, 1280),
        },
    ),
    (
        "CAT-Seg",
        lambda: Aggregator(feature_resolution=(24, 24), window_size=12),
        {
            "layers.1.swin_block.block_2.attn.q.weight": (128, 256),
            "layers.0.swin_block.block_1.attn.v.weight": (128, 128),
            "layers.0.swin_block.guidance_norm.bias": (128,),
            "layers.0.attention.padding_tokens": (1, 1, 128),
            "layers.0.attention.padding_guidance": (1, 1, 128),
            "layers.1.attention.MLP.0.weight": (512, 128),
            "conv1.weight": (128, 2, 7, 7),
            "guidance_projection.0.weight": (128, 256, 3, 3),
            "text_guidance_projection.0.weight": (128, 1024),
            "decoder_guidance_projection.1.0.bias": (16,),
            "decoder1.up.weight": (128, 96, 2, 2),
            "decoder2.conv.double_conv.4.weight": (32,),
            "head.weight": (1, 32, 3, 3),
        },
    ),
    (
        "AnyUp",
        lambda: AnyUp(image_size=64, feature_size=4, output_size=4, qk_dim=128, num_heads=4),
        {
            "image_encoder.0.weight": (128, 3, 1, 1),
            "image_encoder.2.block.5.weight": (128, 128, 1, 1),
            "key_features_encoder.0.basis": (128, 1, 5, 5),
            "cross_decode.cross_attn.norm_k.weight": (128,),
            "cross_decode.conv2d.weight": (128, 128, 3, 3),
            "aggregation.0.weight": (128, 256, 3, 3),
            "rope.freqs": (2, 128),
        },
    ),
    *(
        (
            f"SAM {arch}",
            lambda arch=arch: SamGuidance(
                image_size=1024,
                grid=64,
                guidance_dims=(256, 128),
                **SAMS[arch].model_dump(exclude={"arch", "input_size"}),
            ),
            {
                "image_encoder.pos_embed": (1, 64, 64, width),
                "image_encoder.patch_embed.proj.weight": (width, 3, 16, 16),
                f"image_encoder.blocks.{depth - 1}.mlp.lin1.weight": (4 * width, width),
                "image_encoder.neck.2.weight": (256, 256, 3, 3),
                "image_encoder.neck.3.bias": (256,),
            },
        )
        for arch, width, depth in (("vit_b", 768, 12), ("vit_l", 1024, 24), ("vit_h", 1280, 32))
    ),
]


@pytest.mark.parametrize(("build", "layout"), [row[1:] for row in LAYOUTS], ids=[row[0] for row in LAYOUTS])
def test_official_keys_and_shapes(build: Callable[[], nn.Module], layout: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        found = {key: tuple(value.shape) for key, value in build().state_dict().items()}
    assert {key: found.get(key) for key in layout} == layout


def test_blocks_beyond_the_depth_are_unexpected() -> None:
    module = DinoVisionTransformer(embed_dim=32, depth=1, num_heads=2, qkv_bias=False)
    extra = {"blocks.1.norm1.bias": torch.zeros(32)}
    with pytest.raises(WeightsError, match=r"x\.pth: .*unexpected: blocks\.1\.norm1\.bias"):
        load_state(module, dict(module.state_dict()) | extra, "x.pth")


def test_reading_is_the_same_for_both_formats(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1, dtype=torch.int64)}
    for name in ("x.pth", "x.safetensors"):
        write(tmp_path / name, state)
        found = read_state(tmp_path / name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_sam_tables_of_another_size_are_resized(folder: Path) -> None:
    config = small_config("sam.pretrained_size=128")
    write(folder / FILES["sam"], official_files.official_states(config)["sam"])
    weights = CheckpointFolder(folder, config)
    module = stages.sam_encoder(config).build(weights)
    assert module.image_encoder.pos_embed.shape == (1, 6, 6, 128)


def test_satellite_weights_are_not_taken_for_the_ones_dinotxt_was_trained_on(folder: Path) -> None:
    (folder / FILES["backbone"]).rename(folder / "dinov3_tiny_pretrain_sat493m-eadcf0ff.pth")
    assert "no dinov3_tiny_pretrain_lvd1689m*" in problem(folder)
