"""What `latency.py` prints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.alone import Alone
from benchmarks.record import Record
from benchmarks.stage_profile import StageProfile


def print_report(console: Console, record: Record) -> None:
    console.print(warm_table(record))
    if record.profile is not None and record.profile.sites:
        console.print(stage_table(record.profile))
    console.print(alone_table(record.alone))
    for line in (*sentences(record), *gpu_sentences(record)):
        console.print(line, highlight=False, soft_wrap=True)
    for remark in record.remarks:
        console.print(f"note: {remark}", style="yellow", highlight=False, soft_wrap=True)


def warm_table(record: Record) -> Table:
    heading = f"warm ms of {' and '.join(record.warm)}, frame by frame in turn in one process"
    title = "\n".join((heading, *record.title))
    table = Table("stage", "p50", "p90", "p99", "mean", title=title)
    table.columns[0].no_wrap = True
    rivals = [name for name in record.warm if name != "engine"]
    for name in rivals:
        table.add_column(f"{name} p50")
        table.add_column("ratio")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, spread in record.warm["engine"].items():
        row = [f"{value:.2f}" for value in (spread.p50, spread.p90, spread.p99, spread.mean)]
        for name in rivals:
            known = stage in record.warm[name]
            row += [f"{record.warm[name][stage].p50:.2f}", f"{record.ratio[name][stage]:.2f}x"] if known else ["", ""]
        end = stage == "total"
        if end:
            table.add_section()
        table.add_row("end to end" if end else stage, *row, style="bold" if end else None)
    return table


def stage_table(profile: StageProfile) -> Table:
    """What each engine call, kernel and copy achieved on the GPU."""
    title = "stage by stage on the GPU: CUDA events around each, median"
    table = Table("stage", "starts", "ms", "GFLOP", "TFLOP/s", "of peak", "MB", "GB/s", "of copies", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for site in profile.sites:
        row = [site.site, f"{site.start_ms:.3f}", f"{site.milliseconds:.3f}", "", "", "", "", "", ""]
        if site.flops is not None and site.tflops is not None:
            row[3:6] = [f"{site.flops / 1e9:,.1f}", f"{site.tflops:.1f}", share(site.tflops, profile.roofs.tflops)]
        if site.moved is not None and site.bandwidth is not None:
            on_device = site.site not in ("upload", "download")  # which the bus bounds
            roof = share(site.bandwidth, profile.roofs.bandwidth) if on_device else ""
            row[6:] = [f"{site.moved / 1e6:.2f}", f"{site.bandwidth:.1f}", roof]
        table.add_row(*row)
    return table


def share(value: float, roof: float | None) -> str:
    return "not measured" if roof is None else f"{value / roof:.0%}"


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
    held = [one.gpu_mb for one in alone if one.gpu_mb is not None]
    if len(held) == len(alone):
        row("held of the GPU's memory", held, "MiB")
    return table


def sentences(record: Record) -> list[str]:
    total = record.warm["engine"]["total"]
    speed = f"engine: {1000 / total.p50:.2f} frames/s at the median"
    for name, ratio in record.ratio.items():
        rate, words = 1000 / record.warm[name]["total"].p50, record.words(name)
        speed += f"; {words}: {rate:.2f} frames/s; {name} over engine: {ratio['total']:.2f}x"
    lines = [speed]
    if record.agreement is not None:
        lines.append(f"same model: {record.agreement:.3%} of pixels labelled alike by engine and torch")
    lines += [f"{name}: {alike:.3%} labelled as by torch in fp32" for name, alike in record.torch_agreement.items()]
    if record.without_torch:
        lines.append(f"no torch column: {record.without_torch}")
    lines += precision_lines(record)
    if record.workload.frames < 100:
        lines.append(f"p99 of {record.workload.frames} frames is little more than the slowest of them")
    return lines


def gpu_sentences(record: Record) -> list[str]:
    if record.profile is None:
        return []
    profile, lines = record.profile, [] if record.gpu is None else [f"measured on: {record.gpu}"]
    roofs = profile.roofs
    if roofs.tflops is None or roofs.bandwidth is None:
        lines.append(f"matrix peak and copy bandwidth: not measured: {roofs.reason}")
    else:
        lines.append(
            f"in the same run, torch's best float16 matrix product reached {roofs.tflops:.1f} TFLOP/s, "
            f"copies {roofs.bandwidth:.0f} GB/s"
        )
    device = record.warm["engine"].get("device")
    if profile.flops is not None and device is not None:
        achieved = profile.flops / device.p50 / 1e9
        lines.append(
            f"whole frame: {profile.flops / 1e9:,.1f} GFLOP in {device.p50:.2f} ms of the device: "
            f"{achieved:.1f} TFLOP/s; share of the matrix peak: {share(achieved, roofs.tflops)}"
        )
    if profile.reason:
        lines.append(profile.reason)
    return lines


def precision_lines(record: Record) -> list[str]:
    """What the engines say that they compute in."""
    stages: dict[str, list[str]] = {}
    for stage, words in record.precision.items():
        stages.setdefault(words, []).append(stage)
    if len(stages) == 1:
        return [f"{record.backend} {record.asked_precision} computes in: {next(iter(stages))}"]
    return [f"{', '.join(names)} compute in: {words}" for words, names in stages.items()]
