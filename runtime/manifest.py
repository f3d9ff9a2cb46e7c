"""What a bundle says of itself: the schema of `manifest.json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from runtime.geometry import Geometry

SCHEMA_VERSION = 1
EarlyRefinement = Literal["after_merge", "before_merge", "none"]
Precision = Literal["fp32", "fp16", "bf16"]
TextHalf = Literal["local", "mean"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Entry):
    """A stage's input or output. A named axis is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class StagePrecision(_Entry):
    """What became of a precision that was asked for: it is used where it holds.

    Attributes:
        got: The type of the stage's graph.
        reason: Why it is not simply what was asked for; "" if it is.
        regions: Torch modules that stay in fp32 beyond the usual islands.
        islands: Number of nodes in fp32 by kind.
        flops: Share of the floating-point operations in each type, read back from the graph.
    """

    asked: Precision
    got: Precision
    reason: str = ""
    regions: tuple[str, ...] = ()
    islands: dict[str, int] = {}
    flops: dict[str, float] = {}


class StageEntry(_Entry):
    """One stage and its ONNX file for every precision that was asked for, relative to the bundle."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    onnx: dict[str, str]
    precisions: tuple[StagePrecision, ...] = ()

    def typed(self, asked: str) -> Precision:
        """The type of the graph that a precision stands for."""
        return next((entry.got for entry in self.precisions if entry.asked == asked), "fp32")


class FileEntry(_Entry):
    sha256: str
    size: int


Shape = tuple[int, ...]


class Profile(_Entry):
    """The least, the tuned-for and the largest shape of every input."""

    shapes: dict[str, tuple[Shape, Shape, Shape]]


class EngineKey(_Entry):
    """All that an engine depends on. It is rebuilt where one of these differs, and never loaded.

    Attributes:
        precision: The type of the graph: what the asked-for precision became.
        graph: Hash over the ONNX file and its weights.
        version: Of the library that built it.
        targets: Compute capabilities, e.g. "8.6".
        options: Switches that change the engine.
    """

    stage: str
    backend: Literal["tensorrt", "tensorrt-rtx"]
    precision: Precision
    graph: str
    profiles: tuple[Profile, ...]
    version: str
    targets: tuple[str, ...]
    options: tuple[str, ...] = ()


class EngineFacts(_Entry):
    """What the build really made, read back from the parsed network, and what it cost.

    Attributes:
        layers: In the parsed network, constants left out.
        flops: Share of the floating-point operations in each type; dynamic axes count once.
        attention: Softmaxes between two matrix products.
        fused_attention: Attention kernels in the finished engine; None where no GPU could be asked.
        peak_memory: Of the building process, in bytes.
    """

    layers: int
    flops: dict[str, float]
    attention: int
    fused_attention: int | None = None
    seconds: float
    peak_memory: int


class EngineEntry(_Entry):
    """One engine file, relative to the bundle."""

    key: EngineKey
    path: str
    file: FileEntry
    facts: EngineFacts


class Prompting(_Entry):
    """How a class name becomes a prompt.

    `first_synonym` keeps only the text before the first ", " of a name, as CAT-Seg's test path does.
    """

    template: str = "A photo of a {} in the scene"
    first_synonym: bool = False
    context_length: int = 77


class PipelineSpec(_Entry):
    """All that the order of the stages depends on.

    Attributes:
        sam_size: Side of the guidance encoder's input in pixels.
        rope_periods: The backbone's periods, as in its checkpoint.
        prefix_tokens: Class and storage tokens in front of the patch tokens.
        early_refinement: Where AnyUp acts: on the merged map, on each view before merging, or nowhere.
        refinement: False is the training-free pipeline: cosines straight to labels.
        pad_len: The most classes that refinement sees; 0 for no limit.
        training_free_text: Cosines with the local text half, or the mean over both halves.
    """

    geometry: Geometry
    sam_size: int = Field(gt=0)
    rope_periods: tuple[float, ...]
    prefix_tokens: int
    early_refinement: EarlyRefinement
    refinement: bool
    pad_len: int
    training_free_text: TextHalf


class StageParity(_Entry):
    """An engine's outputs against torch float32 on the same inputs."""

    stage: str
    precision: Precision
    backend: str
    max_abs_error: float
    relative_rms_error: float
    cosine: float


class EndToEnd(_Entry):
    """Whole frames of an engine.

    Attributes:
        agreement: Share of the parity photo's pixels labelled as by torch float32.
        scenes: Number of scenes with ground truth; 0 where the weights were not made for them.
        miou: On these scenes, 0 to 1.
        miou_reference: Of the first engine in fp32.
    """

    backend: str
    precision: Precision
    agreement: float
    scenes: int = 0
    miou: float | None = None
    miou_reference: float | None = None


class Manifest(_Entry):
    """`manifest.json`. What the runtime needs has its own fields; `model` is the whole configuration.

    Attributes:
        weights: sha256 of every checkpoint file by name; empty for random weights.
        engines: Caches that are built from the graphs, for one kind of GPU each.
        vocabulary: The names that the model was made for; empty where any name will do.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    created: str
    pipeline: PipelineSpec
    prompting: Prompting
    weights: dict[str, str]
    random_weights: bool
    vocabulary: tuple[str, ...] = ()
    model: dict[str, Any]
    stages: tuple[StageEntry, ...] = Field(min_length=1)
    parity: tuple[StageParity, ...]
    end_to_end: tuple[EndToEnd, ...]
    engines: tuple[EngineEntry, ...] = ()
    tools: dict[str, str]
    files: dict[str, FileEntry]

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions for which every stage has a graph, the most exact first."""
        first, *others = (set(stage.onnx) for stage in self.stages)
        return tuple(sorted(first.intersection(*others), reverse=True))
