"""The schema of an accuracy result, and the table that is printed from it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.datasets import Identity
from benchmarks.machine import slug
from benchmarks.record import Entry, Run
from runtime.geometry import Geometry
from runtime.pipeline import Views

METHOD = {
    "miou": "mean of class IoUs from one confusion matrix over all pictures; classes absent from truth and prediction "
    "are left out",
    "small objects": "objects with a longer side under 16 px: IoU of their class within their box widened by 4 px, "
    "pixels summed over the objects of a class, then averaged over classes; stray pixels elsewhere do not count",
    "pixel_accuracy": "share of pixels with the right class, ignored ones left out",
    "boundary_f": "F-score of boundary pixels with a partner within 2 px, by class, averaged over the classes present",
    "agreement": "share of pixels labelled as by the reference with the same views",
    "refined": "mean number of classes that went through refinement",
    "speedup": "of a shortlist: time without over time with it, same engine and views, median over pictures; the two "
    "take turns picture by picture, and who begins changes",
    "seconds": "median over frames of one call, contestants in turn; latency.py is the exact instrument",
}


class Score(Entry):
    """One contestant; shares are 0 to 1, None where there was nothing to measure.

    Attributes:
        views: "both" is local-global aggregation; "crops" and "full" are its halves.
        precision: By stage, read back from the engines.
        agreement: None for the reference itself.
        shortlist: 0 where all classes are refined.
        refined: None without refinement.
        speedup: None where there is no shortlist.
    """

    contestant: str
    views: Views
    shortlist: int = 0
    precision: dict[str, str]
    miou: dict[str, float | None]
    pixel_accuracy: float | None
    boundary_f: float | None
    agreement: float | None
    refined: float | None = None
    speedup: float | None = None
    seconds: float
    class_iou: dict[str, float | None]


class AccuracyRecord(Run):
    """One bundle on one set of pictures.

    Attributes:
        small_objects: How many there were; None where sizes of objects are not known.
        without_torch: Why torch is not the reference; None if it is.
    """

    geometry: Geometry
    refinement: bool
    data: Identity
    small_objects: int | None
    method: dict[str, str] = METHOD
    reference: str
    without_torch: str | None
    remarks: tuple[str, ...]
    scores: tuple[Score, ...]

    @property
    def setup(self) -> str:
        geometry = self.geometry
        per_axis = geometry.crops_per_side
        crops = "one pass" if per_axis == 1 else f"{per_axis}x{per_axis} crops of {geometry.crop_size} px"
        return f"{geometry.image_size} px, {crops}, {'with' if self.refinement else 'without'} refinement"

    @property
    def title(self) -> str:
        data = self.data
        what = f"{data.name} {data.split}, seeds {data.seeds[0]} to {data.seeds[1]}" if data.seeds else data.name
        return f"{self.bundle.name}: {self.setup}; {data.images} pictures of {what}, {data.classes} classes"


def file_stem(bundle_folder: str, data: Identity, shortlists: bool = False) -> str:
    """tiny-accuracy; other data than the test split is named, and a comparison of shortlists has a file of its own."""
    other = data.split if data.seeds else data.name
    middle = [] if other == "test" and data.seeds else [slug(other or "data")]
    middle += ["shortlist"] if shortlists else []
    return "-".join([slug(bundle_folder), *middle, "accuracy"])


def caveats(scores: Sequence[Score], random_weights: bool) -> list[str]:
    """Sentences that must stand beside the numbers."""
    found = []
    for one in {score.contestant: score for score in scores}.values():
        asked = one.contestant.split()[-1]
        if asked != "fp32" and asked not in one.precision.values():
            really = ", ".join(dict.fromkeys(one.precision.values()))
            found.append(f"{one.contestant}: this CPU computes in {really}; real {asked} may lose more.")
    if random_weights:
        found.append("The weights are random: scores mean nothing, only agreement does.")
    return found


def print_report(console: Console, record: AccuracyRecord) -> None:
    console.print(score_table(record))
    if any(score.shortlist for score in record.scores):
        console.print(shortlist_table(record))
    if record.small_objects is not None:
        console.print(f"small objects (under 16 px): {record.small_objects}", highlight=False)
    missing = f" (no torch: {record.without_torch})" if record.without_torch else ""
    console.print(f"agreement is with {record.reference}{missing}", highlight=False, soft_wrap=True)
    for remark in record.remarks:
        console.print(f"note: {remark}", style="yellow", highlight=False, soft_wrap=True)


def score_table(record: AccuracyRecord) -> Table:
    """Percent; a dash where there is nothing to measure."""
    groups = list(record.scores[0].miou)
    table = Table("contestant", "views", title=record.title)
    table.columns[0].no_wrap = True
    for group in groups:
        table.add_column("mIoU" if group == "all" else group, justify="right")
    for heading in ("pixels", "boundary F", "agreement", "s/frame"):
        table.add_column(heading, justify="right")
    for one in record.scores:
        cells = [percent(one.miou[group]) for group in groups]
        cells += [percent(one.pixel_accuracy), percent(one.boundary_f)]
        agreement = "reference" if one.agreement is None else percent(one.agreement, 3)
        name = f"{one.contestant}, top {one.shortlist}" if one.shortlist else one.contestant
        table.add_row(name, one.views, *cells, agreement, f"{one.seconds:.3f}")
    return table


def shortlist_table(record: AccuracyRecord) -> Table:
    """What each shortlist costs and gains beside the same engine without, in points of mIoU and in time."""
    table = Table("contestant", "views", title=f"shortlists of {record.data.classes} classes")
    for heading in ("shortlist", "classes refined", "mIoU", "cost, points", "speed-up of a frame"):
        table.add_column(heading, justify="right")
    for one in record.scores:
        base = next(s for s in record.scores if (s.contestant, s.views, s.shortlist) == (one.contestant, one.views, 0))
        miou, without = one.miou["all"], base.miou["all"]
        cost = "-" if miou is None or without is None or one is base else f"{100 * (without - miou):.2f}"
        refined = "-" if one.refined is None else f"{one.refined:.1f}"
        gain = "-" if one.speedup is None else f"{one.speedup:.2f}x"
        table.add_row(one.contestant, one.views, str(one.shortlist or "none"), refined, percent(miou), cost, gain)
    return table


def comparison_table(records: Sequence[AccuracyRecord]) -> Table:
    """The bundles beside each other, and how many points each is above (+) or below the first.

    Of every bundle the first contestant with the most views counts.
    """
    best = [next((s for s in record.scores if s.views == "both"), record.scores[0]) for record in records]
    groups = list(best[0].miou)
    table = Table("bundle", title=f"{best[0].contestant}: mIoU by bundle")
    for group in groups:
        table.add_column("mIoU" if group == "all" else group, justify="right")
    for record, score in zip(records, best, strict=True):
        cells = []
        for group in groups:
            share, first = score.miou[group], best[0].miou[group]
            gain = "" if score is best[0] or share is None or first is None else f" ({100 * (share - first):+.1f})"
            cells.append(percent(share) + gain)
        table.add_row(record.setup, *cells)
    return table


def percent(share: float | None, digits: int = 2) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}"
