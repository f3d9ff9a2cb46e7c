"""The parity gate on the device: built engines against ONNX Runtime in fp32, which the export compared with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from runtime.bundle import Bundle, write_manifest
from runtime.engines import Backend, open_stage
from runtime.engines.base import Array, Engine, Tensors
from runtime.errors import ParityError
from runtime.manifest import EndToEnd, Precision, StageParity
from runtime.parity import compare, gate_end_to_end, objection, passes, worst
from runtime.pipeline import Pipeline
from runtime.segmenter import TEXT_STAGE, text_embedder
from runtime.text import TextEmbedder

REJECTED = "rejected"
Score = Callable[[Pipeline, TextEmbedder], float | None]


class Twin:
    """Engine protocol: gives the reference's results, and notes how far the other engine's are."""

    precision = "fp32"

    def __init__(self, reference: Engine, other: Engine, note: Callable[[Tensors, Tensors], None]) -> None:
        self._reference, self._other, self._note = reference, other, note

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        expected = self._reference(inputs)
        self._note(self._other(inputs), expected)
        return expected


def check_engines(
    bundle: Bundle,
    backend: Backend,
    asked: Precision,
    photo: Array,
    classes: Sequence[str],
    announce: Callable[[str], None] = lambda text: None,
    score: Score | None = None,
) -> Bundle:
    """Compares every stage's engine, and whole frames, and writes what was found into the manifest.

    Args:
        photo: (H, W, 3) uint8 RGB.
        score: Mean IoU on the scenes that the export was scored on, where they are at hand.

    Raises:
        ParityError: an engine is beyond the limits of its precision; all of this backend are kept aside.
    """
    rows, run = measure(bundle, backend, asked, photo, classes, announce, score)
    wrong = next((row for row in rows if not passes(row)), None)
    try:
        if wrong is not None:
            raise ParityError(objection(wrong), wrong.stage)
        if not bundle.manifest.random_weights:
            gate_end_to_end([run])
    except ParityError as error:
        reject(bundle, backend)
        aside = f"the engines are kept aside in {bundle.root / REJECTED}"
        raise ParityError(f"{error}; {aside}", error.stage) from None
    others = [row for row in bundle.manifest.parity if row.backend != backend]
    runs = [one for one in bundle.manifest.end_to_end if one.backend != backend]
    manifest = bundle.manifest.model_copy(update={"parity": (*others, *rows), "end_to_end": (*runs, run)})
    write_manifest(bundle.root, manifest)
    return Bundle(bundle.root, manifest)


def measure(
    bundle: Bundle,
    backend: Backend,
    asked: Precision,
    photo: Array,
    classes: Sequence[str],
    announce: Callable[[str], None],
    score: Score | None,
) -> tuple[list[StageParity], EndToEnd]:
    """The worst call of every stage in the order of the data, and whole frames."""
    rows: list[StageParity] = []
    built: dict[str, Engine] = {}
    twins: dict[str, Twin] = {}
    for stage in bundle.manifest.stages:
        built[stage.name] = open_stage(bundle, stage.name, backend, asked, None)
        typed: Precision = "fp32" if asked == "fp32" else stage.typed(asked)

        def note(found: Tensors, expected: Tensors, name: str = stage.name, typed: Precision = typed) -> None:
            rows.append(compare(name, typed, backend, found, expected))

        twins[stage.name] = Twin(open_stage(bundle, stage.name, "onnxruntime", "fp32", None), built[stage.name], note)
    announce(f"{backend} {asked} against onnxruntime fp32, stage by stage")
    text_twin = twins.pop(TEXT_STAGE)
    embedder = replace(
        text_embedder(bundle, "onnxruntime", None, None), encode=lambda ids: text_twin({"token_ids": ids})["text"]
    )
    text = embedder.embed(list(classes))
    expected = Pipeline(bundle.manifest.pipeline, twins)(photo, text).labels
    announce(f"{backend} {asked} against onnxruntime fp32, end to end")
    pipeline = Pipeline(bundle.manifest.pipeline, {name: built[name] for name in twins})
    labels = pipeline(photo, text).labels
    run = EndToEnd(backend=backend, precision=asked, agreement=float(np.mean(labels == expected)))
    before = next((one for one in bundle.manifest.end_to_end if one.precision == "fp32" and one.miou is not None), None)
    if score is not None and before is not None:
        scores = {"miou": score(pipeline, embedder), "miou_reference": before.miou, "scenes": before.scenes}
        run = run.model_copy(update=scores)
    return worst(rows), run


def reject(bundle: Bundle, backend: Backend) -> None:
    """Moves the backend's engines out of the way and out of the manifest."""
    entries = [entry for entry in bundle.manifest.engines if entry.key.backend == backend]
    kept = tuple(entry for entry in bundle.manifest.engines if entry.key.backend != backend)
    write_manifest(bundle.root, bundle.manifest.model_copy(update={"engines": kept}))
    for entry in entries:
        aside = bundle.root / REJECTED / entry.path
        aside.parent.mkdir(parents=True, exist_ok=True)
        (bundle.root / entry.path).replace(aside)
