"""The shipped weights segment as well as their card says, and mistakes of deployment do not go unnoticed.

Two gates stand behind every change of the pipeline: accuracy (mean IoU on 32 scenes within half a point of the card)
and parity (99.99 % of pixels labelled as by eager torch). Every mutant must fail at one of them at least.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import kernels
from benchmarks.scene_vocabulary import VOCABULARY
from benchmarks.scenes import Scene, make_scene
from benchmarks.segmentation_metrics import Confusion, mean_of
from export.build_inputs import calibration_images, parity_photo, scenes_with_truth
from export.builder import build_bundle
from export.checkpoints import CheckpointFolder
from export.ladder import EAGER, EMULATED
from export.presets import PRESETS
from export.request import Request
from export.shipped import WEIGHTS, trained_classes
from export.stages import stage_table
from export.torch_engine import TorchEngine
from runtime.bundle import Bundle, new_bundle
from runtime.engines import open_engine
from runtime.errors import InputError
from runtime.pipeline import Pipeline
from runtime.segmenter import TEXT_STAGE, Segmenter, text_embedder

TINY = PRESETS["tiny"]
FOLDER = WEIGHTS / "tiny"
RECORD = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))  # `make card` writes it
CARD_SCENES = RECORD["data"]["images"]
CARD_MIOU = 100 * RECORD["scores"][0]["miou"]["all"]
MIOU_TOLERANCE = 0.5  # points
LEAST_AGREEMENT = 0.9999  # fp32 engines reach 0.999999; the mildest mutant 0.9994

Maps = list[npt.NDArray[Any]]


@dataclass
class Tabletop:
    """The bundle of the shipped weights, its engines, the card's scenes, and the label maps of two kinds of engine."""

    bundle: Bundle
    engines: dict[str, Any]
    text: npt.NDArray[np.float32]
    scenes: list[Scene]
    labels: Maps  # ONNX Runtime
    torch_labels: Maps  # of the first scenes

    def run(self, engines: dict[str, Any] | None = None, text: Any = None, **options: Any) -> Maps:
        pipeline = Pipeline(self.bundle.manifest.pipeline, self.engines | (engines or {}))
        text = self.text if text is None else text
        return [pipeline(scene.image, text, scores=False, **options).labels for scene in self.scenes]


@pytest.fixture(scope="module")
def tabletop(tmp_path_factory: pytest.TempPathFactory) -> Tabletop:
    target = tmp_path_factory.mktemp("tabletop") / "tiny"
    weights = CheckpointFolder(FOLDER, TINY)
    request = Request(
        config=TINY,
        weights=weights,
        weights_dir=FOLDER,
        refinement=True,
        halves=("fp16",),
        strict=True,
        runs=(("onnxruntime", "fp32"), ("onnxruntime", "fp16")),
        photo=parity_photo(None, FOLDER),
        calibration=calibration_images(None)[:1],
        scenes=scenes_with_truth(VOCABULARY)[:2],
        classes=VOCABULARY[:20],
        vocabularies=(),
        announce=lambda text: None,
    )
    with new_bundle(target) as folder:
        build_bundle(request, folder)
    bundle = Bundle.open(target)
    spec = bundle.manifest.pipeline
    stages = {stage.name: stage for stage in stage_table(TINY, refinement=True) if stage.name != TEXT_STAGE}
    engines = {name: open_engine("onnxruntime", bundle.onnx(name, "fp32"), "fp32", None) for name in stages}
    modules = {
        name: TorchEngine(stage.build(weights), [o.name for o in stage.outputs]) for name, stage in stages.items()
    }
    text = text_embedder(bundle, "onnxruntime", None, None).embed(VOCABULARY)
    found = Tabletop(bundle, engines, text, [make_scene(seed, split="test") for seed in range(CARD_SCENES)], [], [])
    found.labels = found.run()
    found.torch_labels = [Pipeline(spec, modules)(scene.image, text, scores=False).labels for scene in found.scenes[:8]]
    return found


def miou(scenes: list[Scene], labels: Maps) -> float:
    """Percent, over the classes of truth and prediction."""
    confusion = Confusion(len(VOCABULARY))
    for scene, found in zip(scenes, labels, strict=True):
        confusion.add(scene.labels, found)
    return 100 * (mean_of(confusion.ious()) or 0.0)


def agreement(labels: Maps, reference: Maps) -> float:
    return float(np.mean([found == expected for found, expected in zip(labels, reference, strict=False)]))


def failed_gates(tabletop: Tabletop, labels: Maps) -> set[str]:
    gates = {
        "accuracy": abs(miou(tabletop.scenes, labels) - CARD_MIOU) <= MIOU_TOLERANCE,
        "parity": agreement(labels, tabletop.torch_labels) >= LEAST_AGREEMENT,
    }
    failed = {name for name, passed in gates.items() if not passed}
    found, same = miou(tabletop.scenes, labels), agreement(labels, tabletop.torch_labels)
    print(
        f"mIoU {found:.2f} (card {CARD_MIOU:.2f}), {same:.4%} as torch: fails {', '.join(sorted(failed)) or 'nowhere'}"
    )
    return failed


def test_the_card_is_true_through_onnx_runtime(tabletop: Tabletop) -> None:
    assert miou(tabletop.scenes, tabletop.labels) == pytest.approx(CARD_MIOU, abs=MIOU_TOLERANCE)
    assert agreement(tabletop.labels, tabletop.torch_labels) >= LEAST_AGREEMENT


def test_fp16_holds_for_the_shipped_weights(tabletop: Tabletop) -> None:
    """Every graph went up the precision ladder and passed the gate, eager torch in half precision with it."""
    manifest = tabletop.bundle.manifest
    assert {stage.name: stage.typed("fp16") for stage in manifest.stages if stage.name != TEXT_STAGE} == dict.fromkeys(
        tabletop.engines, "fp16"
    )
    assert not any(
        entry.regions or (entry.reason and entry.got == "fp16") for s in manifest.stages for entry in s.precisions
    )
    witnesses = {backend: [row for row in manifest.parity if row.backend == backend] for backend in (EMULATED, EAGER)}
    assert {row.stage for row in witnesses[EMULATED]} == tabletop.engines.keys()
    assert {row.stage for row in witnesses[EAGER]} == tabletop.engines.keys() - {"anyup"}
    assert all(row.relative_rms_error < 3e-3 for rows in witnesses.values() for row in rows)
    half = next(run for run in manifest.end_to_end if run.precision == "fp16")
    assert half.agreement > 0.999
    assert half.scenes == 2


def test_what_the_weights_bring_along(tabletop: Tabletop) -> None:
    manifest = tabletop.bundle.manifest
    assert not manifest.random_weights
    assert manifest.vocabulary == trained_classes(FOLDER) == VOCABULARY
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 20e6
    assert (FOLDER / "README.md").is_file()


def test_an_untaught_word_names_the_known_ones(tabletop: Tabletop) -> None:
    with (
        Segmenter.load(tabletop.bundle.root, cache_dir=None) as segmenter,
        pytest.raises(InputError, match=r"does not know 'teapot'; it knows only .*ball.*striped"),
    ):
        segmenter.set_classes("table, red teapot")


# --- mutants


@pytest.fixture
def lga_merge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Puts another function in the place of the crop merge; it is given the real one first."""
    real = kernels.lga_merge

    def replace(mutant: Callable[..., Any]) -> None:
        monkeypatch.setattr(kernels, "lga_merge", lambda *args, **options: mutant(real, *args, **options))

    yield replace


def test_mutant_crops_one_token_off(tabletop: Tabletop, lga_merge: Callable[..., None]) -> None:
    side = TINY.geometry.crop_grid

    def mutant(real: Callable[..., Any], local: Any, whole: Any, *, stride: int) -> Any:
        grid = local.reshape(len(local), side, side, -1)
        return real(np.ascontiguousarray(np.roll(grid, 1, axis=2).reshape(local.shape)), whole, stride=stride)

    lga_merge(mutant)
    assert failed_gates(tabletop, tabletop.run())


@pytest.mark.parametrize("divisor", [1, TINY.geometry.crops])
def test_mutant_count_map_ignored(tabletop: Tabletop, lga_merge: Callable[..., None], divisor: int) -> None:
    """Crops must be averaged over those that see a patch: not added up, not divided by how many there are at all."""
    grid, side, token_stride = TINY.geometry.grid, TINY.geometry.crop_grid, TINY.geometry.token_stride
    count = np.zeros((grid, grid, 1), np.float32)
    for top in range(0, grid - side + 1, token_stride):
        for left in range(0, grid - side + 1, token_stride):
            count[top : top + side, left : left + side] += 1

    def mutant(real: Callable[..., Any], local: Any, whole: Any, *, stride: int) -> Any:
        average = real(local, None, stride=stride)
        return (average * count.reshape(-1, 1) / divisor + whole) / 2

    lga_merge(mutant)
    assert failed_gates(tabletop, tabletop.run())


def test_mutant_text_halves_swapped(tabletop: Tabletop) -> None:
    assert failed_gates(tabletop, tabletop.run(text=np.ascontiguousarray(tabletop.text[:, ::-1])))


def test_mutant_red_and_blue_swapped(tabletop: Tabletop) -> None:
    assert failed_gates(tabletop, tabletop.run(color="bgr")) == {"accuracy", "parity"}


def test_mutant_softmax_scale_halved_in_one_block(tabletop: Tabletop) -> None:
    """Half of q is half of the softmax scale."""
    stage = next(stage for stage in stage_table(TINY, refinement=True) if stage.name == "backbone")
    module = stage.build(CheckpointFolder(FOLDER, TINY))
    qkv = module.get_submodule("backbone.blocks.2.attn.qkv")
    width = qkv.weight.shape[1]
    qkv.weight.data[:width] *= 0.5
    qkv.bias.data[:width] *= 0.5
    mutant = TorchEngine(module, [output.name for output in stage.outputs])
    assert failed_gates(tabletop, tabletop.run({"backbone": mutant}))
