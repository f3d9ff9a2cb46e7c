"""Every golden file through our modules; and mistakes put in on purpose, which the golden files must notice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import check_golden
import golden_pipeline
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_pipeline import GoldenModel
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

import kernels
import runtime.pipeline
from export.models import backbone
from runtime.rope import rope_tables

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.safetensors"))
PATCH = pytest.MonkeyPatch


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_official_outputs(path: Path) -> None:
    row = check_golden.check(path)
    assert not row.failures, "\n".join(row.failures)
    assert row.outputs > 0


def test_official_tokens() -> None:
    row = check_golden.check_tokenizer(GOLDEN / "tokenizer.json")
    assert not row.failures, "\n".join(row.failures)


def test_every_model_class_has_a_file() -> None:
    assert {kind for kind in check_golden.RUNNERS for path in FILES if path.name.startswith(kind)} == set(
        check_golden.RUNNERS
    )


# --- the check itself


def run_check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, check_golden.__file__, str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def perturbed(source: Path, folder: Path, wanted: str, change: float) -> Path:
    """A copy of a golden file with `change` added to one element of an output."""
    with safe_open(source, "pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors[f"output/{wanted}"].flatten()[-1] += change
    save_file(tensors, folder / source.name, metadata)
    return folder / source.name


def test_check_exits_1_and_names_a_wrong_output(tmp_path: Path) -> None:
    perturbed(GOLDEN / "sam_tiny.safetensors", tmp_path, "block2_bhwc", 1e-2)
    result = run_check(tmp_path)
    assert result.returncode == 1
    assert "block2_bhwc: 1.00e-02 > 2e-04" in result.stdout
    assert "block1_bhwc" not in result.stdout


def test_check_exits_1_for_an_unknown_prefix(tmp_path: Path) -> None:
    (tmp_path / "resnet_tiny.safetensors").write_bytes((GOLDEN / "sam_tiny.safetensors").read_bytes())
    result = run_check(tmp_path)
    assert result.returncode == 1
    assert "resnet_tiny" in result.stdout


def test_check_exits_1_for_a_folder_without_files(tmp_path: Path) -> None:
    assert run_check(tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("name", "output", "change"),
    [
        ("pipeline_2x2", "logits_K3", 1e-2),
        ("pipeline_2x2", "scores_K3", 1e-3),
        ("pipeline_2x2", "labels_K3", 1),
        ("dinov3_vit_mlp", "96x96/x_norm_clstoken", 1e-2),
        ("catseg_linear_pad8", "K3/logits", 1e-2),
        ("anyup_tiny_edge", "up_3x4", float("nan")),
    ],
)
def test_check_notices_one_wrong_element(name: str, output: str, change: float, tmp_path: Path) -> None:
    row = check_golden.check(perturbed(GOLDEN / f"{name}.safetensors", tmp_path, output, change))
    assert [failure.partition(":")[0] for failure in row.failures] == [output]


def test_check_notices_an_output_that_was_not_computed(monkeypatch: PATCH) -> None:
    monkeypatch.setitem(check_golden.RUNNERS, "sam", lambda case: {})
    row = check_golden.check(GOLDEN / "sam_tiny.safetensors")
    assert len(row.failures) == row.outputs > 0


# --- mistakes


def swap_text_halves(patch: PATCH) -> None:
    after_building(patch, lambda model: model.text_encoder.register_forward_hook(lambda _m, _i, out: out.flip(1)))


def walk_crops_by_column(patch: PATCH) -> None:
    real = kernels.preprocess

    def preprocess(*args: object, **options: object) -> tuple[NDArray, NDArray]:
        image, crops = real(*args, **options)  # type: ignore[arg-type]
        side = int(len(crops) ** 0.5)
        return image, np.ascontiguousarray(crops.reshape(side, side, *crops.shape[1:]).swapaxes(0, 1)).reshape(
            crops.shape
        )

    patch.setattr(kernels, "preprocess", preprocess)


def merge_as_one_flat_mean(patch: PATCH) -> None:
    real = kernels.lga_merge

    def lga_merge(crops: NDArray, full: NDArray | None, stride: int) -> NDArray:
        local = real(crops, None, stride=stride)
        if full is None:
            return local
        ones = np.eye(len(crops), dtype=np.float32)[:, None].repeat(crops.shape[1], axis=1)
        count = 1 / real(ones, None, stride=stride).max(axis=1, keepdims=True)
        return ((local * count + full) / (count + 1)).astype(np.float32)

    patch.setattr(kernels, "lga_merge", lga_merge)


def forget_the_whole_view(patch: PATCH) -> None:
    real = kernels.lga_merge
    patch.setattr(kernels, "lga_merge", lambda crops, full, stride: real(crops, None, stride=stride))


def leave_k_bias_unmasked(patch: PATCH) -> None:
    patch.setattr(backbone, "mask_k_third", lambda bias, mask, name: bias)


def recompute_rope_periods(patch: PATCH) -> None:
    def recomputed(periods: list[float], *rest: object) -> object:
        return rope_tables(100.0 ** (np.arange(len(periods)) / len(periods)), *rest)  # type: ignore[arg-type]

    patch.setattr(runtime.pipeline, "rope_tables", recomputed)


def swap_taps(patch: PATCH) -> None:
    def swap(model: GoldenModel) -> None:
        encoder = model.guidance.image_encoder
        encoder.taps = encoder.taps[::-1]

    after_building(patch, swap)


def resize_with_aligned_corners(patch: PATCH) -> None:
    def upsample_argmax(logits: NDArray, size: tuple[int, int], scores: bool) -> tuple[NDArray, NDArray]:
        big = F.interpolate(torch.from_numpy(logits)[None], size, mode="bilinear", align_corners=True)[0]
        winning, labels = big.max(dim=0)
        return labels.to(torch.uint8).numpy(), winning.numpy()

    patch.setattr(runtime.pipeline, "upsample_argmax", upsample_argmax)


def shrink_with_antialias(patch: PATCH) -> None:
    def preprocess(photo: NDArray, size: int, crop: int, stride: int, color: str) -> tuple[NDArray, NDArray]:
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=True)
        mean, deviation = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        image = ((pixels / 255 - mean) / deviation).numpy()
        offsets = range(0, size - crop + 1, stride)
        crops = [image[0, :, y : y + crop, x : x + crop] for y in offsets for x in offsets]
        return image, np.stack(crops)

    patch.setattr(kernels, "preprocess", preprocess)


def refine_every_class(patch: PATCH) -> None:
    patch.setattr(runtime.pipeline, "refined_classes", lambda cosines, pad_len, shortlist: None)
    patch.setattr(golden_pipeline, "select_classes", lambda cosines, pad_len: None)


def forget_padding_classes(patch: PATCH) -> None:
    def forget(model: GoldenModel) -> None:
        for layer in model.aggregator.layers:
            layer.attention.pad_len = 0

    after_building(patch, forget)


def after_building(patch: PATCH, change: Callable[[GoldenModel], object]) -> None:
    build = GoldenModel.__init__

    def build_and_change(self: GoldenModel, case: object) -> None:
        build(self, case)  # type: ignore[arg-type]
        change(self)

    patch.setattr(golden_pipeline.GoldenModel, "__init__", build_and_change)


BOTH = ("pipeline_2x2", "pipeline_3x3_pad16")
MISTAKES: list[tuple[Callable[[PATCH], None], str, str]] = [
    *((mistake, file, output) for file in BOTH for mistake, output in (
        (swap_text_halves, "logits_K7"),
        (walk_crops_by_column, "logits_K7"),
        (merge_as_one_flat_mean, "logits_K7"),
        (forget_the_whole_view, "merged"),
        (leave_k_bias_unmasked, "logits_K7"),
        (recompute_rope_periods, "logits_K7"),
        (swap_taps, "logits_K7"),
        (resize_with_aligned_corners, "labels_K7"),
    )),
    (shrink_with_antialias, "pipeline_3x3_pad16", "image_normalised"),
    (refine_every_class, "pipeline_3x3_pad16", "logits_K20"),
    (forget_padding_classes, "pipeline_3x3_pad16", "logits_K7"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mistake", "file", "output"), MISTAKES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_mistake_shows(mistake: Callable[[PATCH], None], file: str, output: str, monkeypatch: PATCH) -> None:
    mistake(monkeypatch)
    failed = {failure.partition(":")[0] for failure in check_golden.check(GOLDEN / f"{file}.safetensors").failures}
    assert output in failed


def test_the_antialias_mistake_is_exact_without_antialias(monkeypatch: PATCH) -> None:
    """An enlarged photo has nothing to antialias: the mutant is wrong in that one respect only."""
    shrink_with_antialias(monkeypatch)
    assert not check_golden.check(GOLDEN / "pipeline_2x2.safetensors").failures
