"""What `latency.py` prints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.alone import Alone
from benchmarks.record import Record


def print_report(console: Console, record: Record) -> None:
    console.print(warm_table(record))
    console.print(alone_table(record.alone))
    for line in sentences(record):
        console.print(line, highlight=False, soft_wrap=True)
    for remark in record.remarks:
        console.print(f"note: {remark}", style="yellow", highlight=False, soft_wrap=True)


def warm_table(record: Record) -> Table:
    heading = f"warm ms of {' and '.join(record.warm)}, frame by frame in turn in one process"
    title = "\n".join((heading, *record.title))
    table = Table("stage", "p50", "p90", "p99", "mean", title=title)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    torch = record.warm.get("torch", {})
    if torch:
        table.add_column("torch p50", justify="right")
        table.add_column("ratio", justify="right")
    for stage, spread in record.warm["engine"].items():
        row = [f"{value:.2f}" for value in (spread.p50, spread.p90, spread.p99, spread.mean)]
        if torch:
            row += [f"{torch[stage].p50:.2f}", f"{record.ratio[stage]:.2f}x"]
        end = stage == "total"
        if end:
            table.add_section()
        table.add_row("end to end" if end else stage, *row, style="bold" if end else None)
    return table


def alone_table(alone: Sequence[Alone]) -> Table:
    table = Table("cold", title="each alone in a clean process")
    for one in alone:
        table.add_column(one.contestant, justify="right")

    def row(name: str, values: Sequence[float], unit: str) -> None:
        table.add_row(name, *(f"{value:,.0f} {unit}" for value in values))

    row("imports", [one.imports_ms for one in alone], "ms")
    row("load: checksums and engines; torch: modules", [one.load_ms for one in alone], "ms")
    row("text encoding, nothing cached", [one.text_ms for one in alone], "ms")
    row("first frame", [one.first_frame["total"] for one in alone], "ms")
    row("warm frame, p50", [float(np.median(one.warm_ms)) for one in alone], "ms")
    table.add_section()
    row("memory after imports", [one.start_mb for one in alone], "MiB")
    row("peak until loaded", [one.loaded_mb for one in alone], "MiB")
    row("peak memory", [one.peak_mb for one in alone], "MiB")
    return table


def sentences(record: Record) -> list[str]:
    total = record.warm["engine"]["total"]
    speed = f"engine: {1000 / total.p50:.2f} frames/s at the median"
    if "torch" in record.warm:
        torch = record.warm["torch"]["total"]
        speed += f"; torch eager fp32: {1000 / torch.p50:.2f} frames/s; torch over engine: {record.ratio['total']:.2f}x"
    lines = [speed]
    if record.agreement is not None:
        lines.append(f"same model: {record.agreement:.3%} of pixels labelled alike by engine and torch")
    if record.without_torch:
        lines.append(f"no torch column: {record.without_torch}")
    lines += precision_lines(record)
    if record.workload.frames < 100:
        lines.append(f"p99 of {record.workload.frames} frames is little more than the slowest of them")
    return lines


def precision_lines(record: Record) -> list[str]:
    """What the engines say that they compute in."""
    stages: dict[str, list[str]] = {}
    for stage, words in record.precision.items():
        stages.setdefault(words, []).append(stage)
    if len(stages) == 1:
        return [f"{record.backend} {record.asked_precision} computes in: {next(iter(stages))}"]
    return [f"{', '.join(names)} compute in: {words}" for words, names in stages.items()]
