"""The schema of a video result, and the table that is printed from it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.accuracy_record import percent
from benchmarks.machine import slug
from benchmarks.record import Entry, Run
from runtime.geometry import Geometry

METHOD = {
    "speedup": "time of the clips with every frame computed in full over their time with reuse; all settings in one "
    "process, in turn frame by frame, and who begins changes; frames of a setting with the same number of crops and "
    "whole images computed count at their median",
    "agreement": "share of pixels labelled as when every frame is computed in full; worst: of the worst frame; "
    "on_objects: of the pixels that belong to an object, which most of a picture does not",
    "miou": "mean of class IoUs from one confusion matrix over all frames",
    "backbone_ms": "the median of a frame, as far as the stages are timed one by one: reuse saves here alone",
    "crops, whole": "share of crops and of whole images that went through the backbone",
}


class VideoScore(Entry):
    """One setting on all clips of a kind; shares are 0 to 1. The first setting of a kind is the reference."""

    clip: str
    reuse_global: int
    crops: str
    speedup: float
    milliseconds: float
    backbone_ms: float
    agreement: float
    worst: float
    on_objects: float | None
    miou: float | None
    crops_computed: float
    whole_computed: float

    @property
    def name(self) -> str:
        return f"n={self.reuse_global}, {self.crops}"


class VideoRecord(Run):
    """Attributes:
    clips: How many of each kind, of seeds 0, 1, ...; `frames` each, `size` pixels a side.
    threshold: Grey levels beyond which a crop has changed.
    precision: By stage, read back from the engines.
    """

    backend: str
    asked_precision: str
    precision: dict[str, str]
    geometry: Geometry
    clips: int
    frames: int
    size: int
    classes: int
    threshold: float
    method: dict[str, str] = METHOD
    remarks: tuple[str, ...]
    scores: tuple[VideoScore, ...]

    @property
    def stem(self) -> str:
        return f"{slug(self.bundle.name)}-video-{self.backend}-{self.asked_precision}"

    @property
    def backbone_share(self) -> float:
        """Of the time of frames in full, on average over the kinds of clips."""
        full = [one for one in self.scores if (one.reuse_global, one.crops) == (1, "all")]
        return sum(one.backbone_ms for one in full) / sum(one.milliseconds for one in full)

    @property
    def title(self) -> str:
        crops = (
            f"{self.geometry.crops} crops of {self.geometry.crop_size} px and the whole at {self.geometry.image_size}"
        )
        return (
            f"{self.bundle.name}: {self.backend} {self.asked_precision}, {crops}; {self.frames} frames "
            f"a clip, {self.size}x{self.size}, {self.classes} classes"
        )


def print_report(console: Console, record: VideoRecord) -> None:
    console.print(video_table(record))
    share = record.backbone_share
    if share:
        most = f"frames without it would be {1 / (1 - share):.2f}x as fast"
        console.print(f"the backbone takes {share:.0%} of a frame in full; {most}", highlight=False, soft_wrap=True)
    for remark in record.remarks:
        console.print(f"note: {remark}", style="yellow", highlight=False, soft_wrap=True)


def video_table(record: VideoRecord) -> Table:
    """Shares in percent; the last two of crops and whole images that were computed."""
    table = Table(
        "clip",
        "reuse_global",
        "crops",
        title=record.title,
        caption="crops, whole: share that went through the backbone",
    )
    table.columns[1].justify = "right"
    for heading in ("speed-up", "ms/frame", "agreement", "worst frame", "on objects", "mIoU", "crops", "whole"):
        table.add_column(heading, justify="right")
    previous = ""
    for one in record.scores:
        if previous and one.clip != previous:
            table.add_section()
        table.add_row(
            one.clip if one.clip != previous else "",
            str(one.reuse_global),
            one.crops,
            f"{one.speedup:.2f}x",
            f"{one.milliseconds:.1f}",
            percent(one.agreement),
            percent(one.worst),
            percent(one.on_objects),
            percent(one.miou),
            percent(one.crops_computed, 0),
            percent(one.whole_computed, 0),
        )
        previous = one.clip
    return table
