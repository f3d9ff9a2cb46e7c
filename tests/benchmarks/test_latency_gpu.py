"""The latency benchmark on a GPU: its state as printed, roofs, stages, and a run on the fake device."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cuda_pipelines import device, kernels_on_device, on_device, one_logger_a_test  # noqa: F401 (fixtures)
from PIL import Image
from rich.console import Console
from small_models import CLASSES, random_photo

from benchmarks import alone, contestants, gpu_roofs, latency, measure, stage_profile, torch_frame
from benchmarks.contestants import Name, Task
from benchmarks.gpu_roofs import Roofs, copy_bandwidth, matrix_peak, measure_roofs
from benchmarks.gpu_state import FIELDS, GpuState, gpu_state, parse, run_tool, used_memory_mb
from benchmarks.record import Record
from benchmarks.stage_profile import Site, StageProfile, site_bytes, site_flops, summarise
from benchmarks.tables import gpu_sentences, print_report, stage_table
from benchmarks.timeline import save_timeline
from runtime.bundle import Bundle
from runtime.cuda.plan import plan_frame
from runtime.cuda.timing import StageTime
from runtime.engines.tensorrt_library import Library
from runtime.errors import EngineError
from runtime.gpu import Gpu

H100 = "570.86.15, 1980, 2619, 1980, 700.00, 41\n"


# What the GPU was.


def test_one_line_of_nvidia_smi() -> None:
    assert parse(H100) == {
        "driver": "570.86.15",
        "sm_mhz": 1980,
        "memory_mhz": 2619,
        "most_sm_mhz": 1980,
        "power_limit_w": 700,
        "celsius": 41,
    }


@pytest.mark.parametrize(
    "line", ["580.1, [N/A], [Not Supported], [Unknown Error], [N/A], [N/A]", "[N/A]" + ", [N/A]" * 5]
)
def test_what_nvidia_smi_does_not_know(line: str) -> None:
    found = parse(line)
    assert found["driver"] in ("580.1", "")
    assert {found[name] for name in FIELDS if name != "driver"} == {None}


@pytest.mark.parametrize("printed", ["", "\n", "No devices were found\n", "Failed to initialize NVML: a, b\n"])
def test_no_answer_of_nvidia_smi(printed: str) -> None:
    assert parse(printed) == {}


def test_the_state_in_words() -> None:
    answers = {1: "| NVIDIA-SMI 570.86.15   Driver Version: 570.86.15   CUDA Version: 12.8  |", 4: H100}
    found = gpu_state(Gpu("NVIDIA H100 80GB HBM3", "9.0", integrated=False), lambda command: answers[len(command)])
    assert str(found) == (
        "NVIDIA H100 80GB HBM3 (compute capability 9.0), driver 570.86.15, CUDA 12.8, SM at 1980 of 1980 MHz, "
        "memory at 2619 MHz, power limit 700 W"
    )
    jetson = {"nvpmodel": "NV Power Mode: MAXN\n0\n"}
    found = gpu_state(Gpu("Orin", "8.7", integrated=True), lambda command: jetson.get(command[0], ""))
    assert str(found) == "Orin (compute capability 8.7), power mode MAXN"


def test_a_missing_tool_says_nothing() -> None:
    assert run_tool(["no-such-tool-here"]) == ""
    assert run_tool(["false"]) == ""


# Roofs.


def milliseconds(value: float) -> Callable[[Callable[[], Any]], float]:
    def clock(run: Callable[[], Any]) -> float:
        run()
        return value

    return clock


def test_roofs_are_operations_and_bytes_over_time() -> None:
    assert matrix_peak(milliseconds(0.5), "cpu", (8, 16)) == pytest.approx(2 * 16**3 / 0.5e-3 / 1e12)
    assert copy_bandwidth(milliseconds(0.5), "cpu", 4000) == pytest.approx(2 * 4000 / 0.5e-3 / 1e9)


def test_roofs_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed by events; large matrices and copies are for a real one."""
    monkeypatch.setattr(gpu_roofs, "why_no_gpu_torch", lambda: "")
    monkeypatch.setattr(gpu_roofs, "matrix_peak", lambda clock, where, sides: clock(lambda: None))
    monkeypatch.setattr(gpu_roofs, "copy_bandwidth", lambda clock, where, size: size)
    monkeypatch.setattr(torch_frame, "Watch", lambda where: SimpleNamespace(stop=lambda: {"device": 3.0, "total": 9.0}))
    assert measure_roofs() == Roofs(tflops=3.0, bandwidth=2**30)


def test_roofs_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure_roofs() == Roofs(reason="this torch sees no GPU: install the build for your driver")
    monkeypatch.setattr(gpu_roofs.importlib.util, "find_spec", lambda name: None)
    assert measure_roofs().reason == "torch is not installed"


# Stages.


def test_operations_and_bytes_of_a_frame(small_bundle: Path) -> None:
    """By hand: 96 px, 4 crops of 64 px, 6x6 patches of 192 channels, 40 classes in two chunks."""
    bundle = Bundle.open(small_bundle)
    plan = plan_frame(bundle, 40)
    flops = site_flops(bundle, plan, "fp16")
    assert flops["correlation"] == 2 * 40 * 2 * 36 * 192
    assert flops["backbone crops"] > flops["backbone full"] > 0
    assert flops["decoder 32"] * 4 == pytest.approx(flops["decoder 0"], rel=0.05)  # 8 classes and 32
    photo, image = 60 * 90 * 3, 4 * 3 * 96 * 96
    assert site_bytes(bundle.manifest.pipeline, plan, (60, 90)) == {
        "upload": photo,
        "preprocess": photo + image + 4 * 4 * 3 * 64 * 64,
        "lga_merge": 4 * 192 * (4 * 16 + 2 * 36),
        "upsample_argmax": 4 * 40 * 24 * 24 + 60 * 90,
        "download": 60 * 90,
    }


def test_wide_labels_and_the_training_free_pipeline(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    plan = plan_frame(bundle, 300)
    free = bundle.manifest.pipeline.model_copy(update={"refinement": False})
    assert site_bytes(free, plan, (10, 10))["download"] == 200
    assert site_bytes(free, plan, (10, 10))["upsample_argmax"] == 4 * 300 * 36 + 200


def test_medians_over_frames_in_the_order_of_the_start() -> None:
    frames = [
        [StageTime("anyup", "anyup", 9.0, 2.0 + i), StageTime("lga_merge", "lga_merge", 5.0, 0.01)] for i in (0, 1, 9)
    ]
    merge, anyup = summarise(frames, {"anyup": 6_000_000_000}, {"lga_merge": 10_000_000})
    assert (anyup.milliseconds, anyup.tflops, anyup.bandwidth) == (3.0, 2.0, None)
    assert (merge.start_ms, merge.tflops, merge.bandwidth) == (5.0, None, 1000.0)


def profile(roofs: Roofs) -> StageProfile:
    """Made up, with two chunks of classes and streams side by side."""
    rows: list[tuple[str, str, float, float, int | None, int | None]] = [
        ("upload", "upload", 0.0, 0.11, None, 2_764_800),
        ("preprocess", "preprocess", 0.11, 0.02, None, 14_000_000),
        ("backbone crops", "backbone", 0.14, 3.1, 1_900_000_000_000, None),
        ("backbone full", "backbone", 0.15, 2.2, 1_300_000_000_000, None),
        ("sam_encoder", "sam_encoder", 0.15, 4.4, 1_250_000_000_000, None),
        ("lga_merge", "lga_merge", 3.3, 0.01, None, 22_500_000),
        ("anyup", "anyup", 3.32, 0.4, 40_000_000_000, None),
        ("correlation", "correlation", 3.74, 0.02, 130_000_000, None),
        ("refinement", "refinement", 4.6, 1.1, 90_000_000_000, None),
        ("decoder 0", "decoder", 5.7, 0.6, 60_000_000_000, None),
        ("decoder 32", "decoder", 6.3, 0.2, 20_000_000_000, None),
        ("upsample_argmax", "upsample_argmax", 6.52, 0.012, None, 2_500_000),
        ("download", "download", 6.54, 0.03, None, 921_600),
    ]
    names = ("site", "stage", "start_ms", "milliseconds", "flops", "moved")
    return StageProfile(sites=tuple(Site(**dict(zip(names, row, strict=True))) for row in rows), roofs=roofs)


def printed(table: Any) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_table_of_stages() -> None:
    text = printed(stage_table(profile(Roofs(tflops=800.0, bandwidth=2500.0))))
    assert re.search(r"backbone crops .* 1,900.0 .* 612.9 .* 77% ", text)
    assert re.search(r"lga_merge .* 22.50 .* 2250.0 .* 90% ", text)
    assert re.search(r"upload .* 25.1 \W*\n", text)  # the bus bounds it, not the device's copies
    assert "not measured" in printed(stage_table(profile(Roofs(reason="x"))))


def test_the_timeline(tmp_path: Path) -> None:
    path = tmp_path / "timeline.png"
    save_timeline(path, profile(Roofs()).sites, ("made-up: a test", "of the picture alone"), "All numbers are made up.")
    with Image.open(path) as picture:
        assert picture.width > 1000


# A run.


@pytest.fixture
def task(
    on_device: tuple[Bundle, Library],  # noqa: F811
    kernels_on_device: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Task:
    """On the fake device; torch's frames run on the CPU."""
    monkeypatch.setattr(contestants, "CUDA", "cpu")
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    photo = tmp_path / "photo.npy"
    np.save(photo, random_photo(60, 90))
    return Task(
        bundle=on_device[0].root,
        backend="tensorrt",
        precision="fp16",
        threads=1,
        classes=CLASSES,
        weights=None,
        photo=photo,
        warmup=0,
        frames=2,
    )


def quick_alone(name: Name, task: Task) -> alone.Alone:
    """Instead of processes, which would not see the fake device."""
    if name == "torch compile":
        raise EngineError("the process that measures torch compile ended with code 1: no compiler")
    numbers = dict.fromkeys(("imports_ms", "load_ms", "text_ms", "start_mb", "loaded_mb", "peak_mb", "gpu_mb"), 1.0)
    return alone.Alone(contestant=name, first_frame={"total": 1.0}, warm_ms=(1.0,), **numbers)


def test_who_takes_part(task: Task) -> None:
    assert contestants.contestant_names(task, None, True) == ["engine", "torch", "torch half", "torch compile"]
    assert contestants.contestant_names(task, None, False) == ["engine", "torch", "torch half"]
    assert contestants.contestant_names(task, "no GPU", True) == ["engine"]
    on_cpu = task.model_copy(update={"backend": "openvino"})
    assert contestants.contestant_names(on_cpu, None, True) == ["engine", "torch"]


def test_a_run_on_the_fake_device(task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(alone, "measure_alone", quick_alone)
    monkeypatch.setattr(stage_profile, "ROUNDS", 2)
    monkeypatch.setattr(measure, "gpu_state", lambda gpu: gpu_state(gpu, lambda command: ""))
    names = contestants.contestant_names(task, None, True)
    record = latency.measure(Bundle.open(task.bundle), task, names, None, "photo.png")
    out = tmp_path / "results"
    data, chart, timeline = latency.write(record, out)
    assert data.parent == out / "nvidia-fake"
    assert (chart.name, timeline.name) == ("tiny-tensorrt-fp16.png", "tiny-tensorrt-fp16-timeline.png")
    written = Record.model_validate_json(data.read_text())
    assert written == record
    assert written.gpu == GpuState(name="NVIDIA Fake", compute_capability="8.6")
    assert set(written.warm) == {"engine", "torch", "torch half"}
    assert set(written.warm["engine"]) == {"device", "total"}
    assert set(written.torch_agreement) == {"torch half"}
    assert any("torch compile: not measured" in remark and "no compiler" in remark for remark in written.remarks)
    sites = {site.site: site for site in written.profile.sites}
    assert {"upload", "backbone crops", "lga_merge", "decoder 0", "upsample_argmax", "download"} <= set(sites)
    assert all((site.flops is None) != (site.moved is None) for site in sites.values())
    assert any("not measured" in line for line in gpu_sentences(written))
    report = Console(width=200, record=True, file=io.StringIO())
    print_report(report, written)
    text = report.export_text()
    for words in ("torch half p50", "end to end", "held of the GPU's memory", "NVIDIA Fake", "labelled as by torch"):
        assert words in text


def test_compiled_torch_is_the_same_model(task: Task) -> None:
    with (
        contestants.open_contestant("torch half", task) as half,
        contestants.open_contestant("torch compile", task) as c,
    ):
        photo = random_photo()
        for segmenter in (half, c):
            segmenter.set_classes(list(CLASSES))
        assert np.array_equal(half(photo).labels, c(photo).labels)
        assert set(c.precision.values()) == {"fp16, torch.compile"}


def test_memory_of_the_gpu_is_measured_alone(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter((500.0, 1524.0))
    monkeypatch.setattr(alone, "used_memory_mb", lambda: next(used))
    found = alone.measure("torch", task)
    assert found.gpu_mb == 1024
    assert found.contestant == "torch"
    assert used_memory_mb(lambda command: " 1234\n") == 1234
    assert used_memory_mb(lambda command: "[N/A]\n") is None
    assert used_memory_mb(lambda command: "") is None
