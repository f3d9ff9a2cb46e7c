"""The parts of the tiny model's training that can go wrong without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from benchmarks.scene_vocabulary import APPEARANCES, SHAPES, UNSEEN, VOCABULARY
from benchmarks.scenes import make_scene
from export.checkpoints import CheckpointFolder
from export.presets import PRESETS
from export.stages import stage_table
from export.train_tiny import app, build_alignment, build_early, build_head, go_on_from, random_window, setting
from export.training.alignment import AlignmentLoss, Window, composition_loss, weighted_cross_entropy
from export.training.curves import draw_curves, read_curve
from export.training.data import SceneSet, class_shares, normalise, scene_set
from export.training.early import EarlyLoss
from export.training.head import HeadLoss, class_maps
from export.training.initial import start_patch_embedding
from export.training.loop import Schedule, train
from export.training.muon import orthogonal
from export.training.outlines import outline_targets
from export.training.shipping import save_weights
from runtime.errors import InputError
from runtime.text import Tokenizer


def test_words_and_their_relations(tmp_path: Path) -> None:
    config, words = setting(tmp_path)
    assert [VOCABULARY[i] for i in words.train] == [name for name in VOCABULARY if name not in UNSEEN]
    assert words.all_ids.shape == (len(VOCABULARY), config.prompting.context_length)
    assert len({tuple(row) for row in words.all_ids.tolist()}) == len(VOCABULARY)
    look, shape = words.attributes(torch.tensor([VOCABULARY.index(name) for name in ("wall", "red ball", "red star")]))
    assert look[0] == shape[0] == -1
    assert look[1] == look[2]
    assert shape[1] != shape[2]


def test_an_untaught_word_is_reported(tmp_path: Path) -> None:
    setting(tmp_path)
    with pytest.raises(InputError, match="teapot"):
        Tokenizer.from_file(tmp_path / "tokenizer.json", 16).encode(["A photo of a red teapot in the scene"])


def test_composition_is_free_of_cost_for_sums_only(tmp_path: Path) -> None:
    _, words = setting(tmp_path)
    generator = torch.Generator().manual_seed(0)
    looks = torch.randn(words.looks, 2, 8, generator=generator)
    shapes = torch.randn(words.shapes, 2, 8, generator=generator)
    look, shape = words.attributes(words.train[words.surfaces :])
    sums = looks[look] + shapes[shape]
    assert composition_loss(sums, words.not_additive) < 1e-8
    assert composition_loss(sums + torch.randn(sums.shape, generator=generator), words.not_additive) > 1


def test_unseen_pairs_are_no_evidence_against_their_parts(tmp_path: Path) -> None:
    _, words = setting(tmp_path)
    nothing = torch.zeros(words.looks + words.shapes)
    red = torch.eye(words.looks)[APPEARANCES.index("red")]
    assert [
        shape for shape, value in zip(SHAPES, words.excused(red, nothing[: words.shapes]), strict=True) if value
    ] == ["ring"]
    cube = torch.eye(words.shapes)[SHAPES.index("cube")]
    looks = [
        look for look, value in zip(APPEARANCES, words.excused(cube, nothing[: words.looks]), strict=True) if value
    ]
    assert {f"{look} cube" for look in looks} == {name for name in UNSEEN if name.endswith(" cube")}
    ring_too = torch.eye(words.shapes)[SHAPES.index("ring")] / 2
    assert not words.excused(red, ring_too).any()


def test_class_shares_count_pixels() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (2, 32, 48)))
    shares = class_shares(labels, 5, 16)
    for cell, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        pixels = labels[1, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        assert torch.allclose(shares[1, cell], torch.bincount(pixels.flatten(), minlength=5) / 256)


def test_class_maps_of_candidates() -> None:
    labels = torch.tensor([[[7, 7, 3, 3], [7, 1, 3, 3]]])
    maps = class_maps(labels, torch.tensor([[3, 7]]), 2)
    assert maps.tolist() == [[[[0, 1]], [[0.75, 0]]]]


def test_cross_entropy_ignores_patches_without_the_classes_asked_for() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 9.0]]])
    shares = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    expected = torch.nn.functional.cross_entropy(logits[0, :1], torch.tensor([0]))
    assert torch.isclose(weighted_cross_entropy(logits, shares, torch.ones(1, 2)), expected)


def test_candidates_hold_the_scene_and_no_unseen_pair(tmp_path: Path) -> None:
    _, words = setting(tmp_path)
    loss = HeadLoss(words, torch.zeros(len(VOCABULARY), 2, 4))
    labels = torch.full((4, 4), VOCABULARY.index("red ball"))
    labels[0] = 0
    found = loss.candidates(labels, np.random.default_rng(0), 12).tolist()
    assert len(set(found)) == 12
    assert {0, VOCABULARY.index("red ball")} <= set(found)
    assert not words.unseen[found].any()


def test_losses_leave_nothing_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `--device cuda` needs, without a GPU: torch neither adds nor joins tensors of "meta" and of the CPU."""
    config, vocabulary = setting(tmp_path)
    words, side = vocabulary.to(torch.device("meta")), config.geometry.image_size
    alignment, early = build_alignment(config).to("meta"), build_early(config, 192).to("meta")
    # "meta" has shapes but no numbers, which these three ask for.
    alignment.backbone.rope_embed.periods = torch.ones(alignment.backbone.rope_embed.periods.shape)
    monkeypatch.setattr(Tensor, "item", lambda self: 0.0)
    monkeypatch.setattr("export.training.alignment.outline_loss", lambda guess, targets, there: (guess * targets).sum())

    def images(size: int) -> Tensor:
        return torch.empty(1, 3, size, size, device="meta")

    def labels(size: int) -> Tensor:
        return torch.zeros(1, size, size, dtype=torch.long)

    loss, _ = AlignmentLoss(words)(alignment, images(96), labels(96), Window((20, 20), 3, 5))
    loss.backward()
    loss, _ = EarlyLoss(alignment, words)(early, images(192), class_shares(labels(192), len(VOCABULARY), 16))
    loss.backward()
    features = torch.empty(1, config.geometry.grid**2, 192, device="meta")
    head_loss = HeadLoss(words, torch.empty(len(VOCABULARY), 2, 192, device="meta"))
    loss, _ = head_loss(build_head(config).to("meta"), images(side), features, labels(side), torch.arange(8)[None])
    loss.backward()


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_orthogonal_updates(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert ((values > 0.6) & (values < 1.3)).all()


def test_patch_embedding_starts_whitened() -> None:
    images = normalise(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
    projection = nn.Conv2d(3, 48, 16, 16)
    start_patch_embedding(projection, images)
    responses = projection(images).transpose(0, 1).flatten(1)
    assert responses.mean(dim=1).abs().max() < 1e-4
    assert 0.1 < responses.std() < 0.6


def crop_set() -> SceneSet:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (3, 64, 64)).astype(np.uint8)
    labels[:, 40:44, 50:54] = 9
    return SceneSet(rng.integers(0, 256, (3, 64, 64, 3), np.uint8), labels)


def test_crops_match_their_labels_and_show_objects() -> None:
    scenes = crop_set()
    scenes.images[...] = scenes.labels[..., None]
    images, labels = scenes.crops(np.random.default_rng(1), 40, 16)
    assert torch.allclose(images, normalise(labels.numpy().astype(np.uint8)[..., None].repeat(3, axis=-1)))
    assert (labels == 9).flatten(1).any(dim=1).float().mean() > 0.15


def test_scenes_are_kept_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_a_file(path: Path, array: np.ndarray) -> None:
        path.write_bytes(array.tobytes()[: array.nbytes // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", half_a_file)
        with pytest.raises(KeyboardInterrupt):
            scene_set("train", 2, 96, tmp_path)
    assert not list(tmp_path.iterdir())
    kept = scene_set("train", 2, 96, tmp_path)
    for seed in range(2):
        assert (kept.images[seed] == make_scene(seed, 96).image).all()
        assert (kept.labels[seed] == make_scene(seed, 96).labels).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["early"], "align.pt does not exist; train it first"),
        (["head"], "align.pt does not exist; train it first"),
        (["align", "--device", "tpu"], "--device is 'tpu'; expected cpu or cuda"),
    ],
)
def test_a_wrong_order_is_told_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, [*options, "--work", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.output
    assert done.output.count("\n") == 1


def trained(work: Path, steps: int, stop_at: int | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(6, 6)]), "out": nn.Linear(6, 1)})

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop_at:
            raise KeyboardInterrupt
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        value = (model["out"](model["blocks"][0](inputs)) - inputs.sum(1, keepdim=True)).square().mean()
        return value, {"loss": value.item()}

    train("phase", model, Schedule(steps, 2, 1e-2, 1e-2), loss, dict, work, evaluate_every=5)
    return model.state_dict()


def test_a_stopped_training_ends_where_an_unbroken_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.training.loop.SAVE_EVERY_SECONDS", 0.0)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = trained(tmp_path / "whole", 12)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", 12, stop_at=7)
    broken = trained(tmp_path / "broken", 12)
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


def test_training_goes_on_from_saved_weights(tmp_path: Path) -> None:
    config, words = setting(tmp_path)
    model = build_alignment(config)
    save_weights({"align": model}, tmp_path / "tokenizer.json", tmp_path / "weights")
    again = build_alignment(config)
    nn.init.ones_(again.backbone.cls_token)
    go_on_from(again, CheckpointFolder(tmp_path / "weights", config))
    with torch.no_grad():
        torch.testing.assert_close(again.text_encoder(words.ids), model.text_encoder(words.ids), atol=1e-2, rtol=0)
    assert torch.allclose(again.backbone.cls_token, model.backbone.cls_token, atol=1e-3)
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_saved_weights_are_official_files(tmp_path: Path) -> None:
    """What training holds is what `--weights` loads, to fp16's last bit."""
    config, _ = setting(tmp_path)
    modules: dict[str, nn.Module] = {
        "align": build_alignment(config),
        "early": build_early(config, config.geometry.image_size),
        "head": build_head(config),
    }
    save_weights(modules, tmp_path / "tokenizer.json", tmp_path / "weights")
    folder = CheckpointFolder(tmp_path / "weights", config)
    built: dict[str, Callable[[], nn.Module]] = {
        stage.name: (lambda stage=stage: stage.build(folder)) for stage in stage_table(config, refinement=True)
    }
    for stage, own in (
        ("backbone", {"backbone.": modules["align"].backbone, "head.": modules["align"].head}),
        ("text_encoder", {"": modules["align"].text_encoder}),
        ("anyup", {"anyup.": modules["early"].anyup}),
        ("sam_encoder", {"": modules["head"].guidance}),
        ("refinement", {"aggregator.": modules["head"].aggregator}),
    ):
        loaded = built[stage]().state_dict()
        for prefix, module in own.items():
            for key, value in module.state_dict().items():
                if not key.endswith("attn.qkv.bias"):  # its k third is masked at load
                    assert torch.allclose(loaded[prefix + key], value, atol=2e-3, rtol=2e-3), key


def test_outlines_tell_shape_and_place() -> None:
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[0, 16:32, 16:48] = 9  # a bar two patches wide
    labels[0, 40:44, 40:44] = 5  # covers a sixteenth of its patch
    targets, there = outline_targets(labels, 16)
    assert there.nonzero().tolist() == [[0, 5], [0, 6]]
    assert (targets[0, 5, :64] == 1).all()
    assert (targets[0, 5, 64:] * 64).tolist() == [-8, -8, 24, 8]
    assert (targets[0, 6, 64:] * 64).tolist() == [-24, -8, 8, 8]


def test_outlines_of_two_objects_in_one_patch_take_the_larger() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[0, :, :6], labels[0, :, 8:] = 4, 7
    targets, there = outline_targets(labels, 16)
    assert there.all()
    assert (targets[0, 0, 64:] * 64).tolist() == [0, -8, 8, 8]


def test_windows_are_parts_of_the_products_grid() -> None:
    """Attention in a training crop sees the very angles that it will see in the whole image."""
    model = build_alignment(PRESETS["tiny"]).backbone
    whole = Window((20, 20)).rope_tables(model, (20, 20))
    part = Window((20, 20), 3, 5).rope_tables(model, (6, 6))
    prefix = model.prefix_tokens
    for table, cut in zip(whole, part, strict=True):
        assert torch.equal(table[prefix:].reshape(20, 20, -1)[3:9, 5:11].flatten(0, 1), cut[prefix:])
        assert torch.equal(table[:prefix], cut[:prefix])


def test_random_windows_lie_inside(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = {
        (window.grid[0], window.row + 6 <= window.grid[0] and window.column + 6 <= window.grid[1])
        for window in (random_window(rng, 6, PRESETS["tiny"]) for _ in range(60))
    }
    assert found == {(12, True), (20, True)}
    assert random_window(rng, 20, PRESETS["tiny"]) == Window((20, 20))


def test_curves_are_drawn_once_a_step(tmp_path: Path) -> None:
    rows = [{"step": step, "loss a": 1.0, "seen": step / 300, "minutes": 1} for step in (100, 200, 200)]
    (tmp_path / "align.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [row["step"] for row in read_curve(tmp_path / "align.jsonl")] == [100, 200]
    draw_curves(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_anyup_starts_where_it_can_learn() -> None:
    early = build_early(PRESETS["tiny"], 192)
    early(torch.randn(1, 3, 192, 192), torch.randn(1, 144, 192)).square().sum().backward()
    gradient = early.anyup.cross_decode.cross_attn.attention.in_proj_weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 1e-4
