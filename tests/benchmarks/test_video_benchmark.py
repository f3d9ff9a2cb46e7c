"""The video benchmark: clips whose truth is known, its measures, and the command from end to end."""

from __future__ import annotations

import getpass
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from small_models import random_photo

from benchmarks import video_run
from benchmarks.clips import CLIPS, moving_camera, moving_object
from benchmarks.scene_vocabulary import VOCABULARY
from benchmarks.scenes import make_scene
from benchmarks.video_record import VideoRecord
from benchmarks.video_run import SETTINGS, Tally, film, named
from runtime.bundle import Bundle
from runtime.geometry import Geometry
from runtime.pipeline import Pipeline
from runtime.reuse import Reuse

ROOT = Path(__file__).resolve().parents[2]
GEOMETRY = Geometry(image_size=96, crop_size=64, stride=32)

# --- clips


@pytest.mark.parametrize("seed", range(6))
def test_one_object_moves_and_all_else_stays(seed: int) -> None:
    first, *later = [make_scene(seed, 160, "test", frame) for frame in (0, 1, 9, 30)]
    moving = first.objects[-1].label
    for scene in later:
        moved = scene.labels != first.labels
        assert moved.any()
        here = (scene.labels == moving) | (first.labels == moving)
        assert not (moved & ~here).any()  # truth changes only where the object is or was
        near = cv2.dilate(here.view(np.uint8), np.ones((25, 25), np.uint8)) > 0
        difference = np.abs(scene.image.astype(int) - first.image)[~near]
        assert 0 < difference.mean() < 8  # noise and shadow


def test_an_object_stays_in_the_picture_on_its_way() -> None:
    for seed in range(8):
        label = make_scene(seed, 96, "hard").objects[-1].label
        places = []
        for frame in range(0, 260, 13):
            columns = np.flatnonzero((make_scene(seed, 96, "hard", frame).labels == label).any(axis=0))
            assert columns.size
            places.append(columns.mean())
        assert max(places) - min(places) > 5
    assert len(make_scene(1, 320, "test", 24).objects) >= 2  # in front of others


def test_frames_are_the_same_each_time_and_the_first_is_the_scene() -> None:
    clips = [list(moving_object(3, 3, 128)) for _ in range(2)]
    for (image, labels), (again, labels_again) in zip(*clips, strict=True):
        assert np.array_equal(image, again)
        assert np.array_equal(labels, labels_again)
    assert np.array_equal(clips[0][0][0], make_scene(3, 128, "test").image)


def test_a_moving_camera_shows_a_window() -> None:
    scene = make_scene(3, 300, "test")
    frames = list(moving_camera(3, 120, 200))
    assert {image.shape for image, _ in frames} == {(200, 200, 3)}
    lefts = [0, 2, 100, 98]  # to the edge and back
    for (image, labels), left in zip([frames[i] for i in (0, 1, 50, 51)], lefts, strict=True):
        assert np.array_equal(image, scene.image[50:250, left : left + 200])
        assert np.array_equal(labels, scene.labels[50:250, left : left + 200])


# --- measuring


def test_the_classes_of_a_clip_and_others() -> None:
    clip = [(random_photo(2, 2), np.array([[5, 0], [9, 5]], np.uint8))]
    assert named(clip, 12, 3).tolist() == [0, 5, 9]
    assert named(clip, 12, 6).tolist() == [0, 1, 2, 3, 5, 9]


def test_what_film_counts() -> None:
    """Pipelines of known speed: with reuse they label one pixel of four otherwise."""
    order: list[int] = []
    image, truth = np.full((96, 96, 3), 90, np.uint8), np.zeros((96, 96), np.uint8)
    truth[48:] = 3

    def pipeline(index: int) -> Any:
        def call(photo: np.ndarray, text: np.ndarray, scores: bool, reuse: Reuse | None) -> Any:
            order.append(index)
            if reuse is not None:
                reuse.refresh(photo, "rgb", reuse.last)
            labels = np.zeros((96, 96), np.uint8)
            labels[48:] = 1 if reuse is None else 0
            labels[:, :48] = 0
            return SimpleNamespace(labels=labels, timings={"total": 40.0 if reuse is None else 10.0, "anyup": 3.0})

        return call

    tallies = [Tally(5) for _ in SETTINGS]
    pipelines = [pipeline(index) for index in range(len(SETTINGS))]
    text = np.zeros((5, 2, 4), np.float32)
    film([(image, truth)] * 4, pipelines, text, np.array([0, 3], np.uint8), GEOMETRY, tallies)
    assert order[:16] == [*range(8), *range(7, -1, -1)]
    scores = {
        setting: video_run.score("x", setting, tally, tallies[0], GEOMETRY)
        for setting, tally in zip(SETTINGS, tallies, strict=True)
    }
    full, most = scores[1, "all"], scores[8, "changed"]
    assert (full.speedup, full.agreement, full.crops_computed, full.whole_computed) == (1, 1, 1, 1)
    assert (most.speedup, most.agreement, most.worst, most.on_objects) == (4, 0.75, 0.75, 0.5)
    assert (most.crops_computed, most.whole_computed) == (0.25, 0.25)
    assert (scores[2, "all"].crops_computed, scores[2, "all"].whole_computed) == (1, 0.5)
    assert (full.milliseconds, most.milliseconds) == (40, 10)
    assert full.miou == pytest.approx((2 / 3 + 1 / 2) / 2)  # half of the lower half is class 0
    assert most.miou == pytest.approx((1 / 2 + 0) / 2)


def test_a_disturbed_frame_counts_as_its_like() -> None:
    tally = Tally(3)
    tally.agreement = [1.0] * 6
    tally.milliseconds = {(4, True): [40.0, 900.0, 42.0], (0, False): [10.0, 12.0, 11.0]}
    assert tally.mean_ms() == (3 * 42 + 3 * 11) / 6
    assert tally.computed() == (2, 0.5)


def test_on_the_host_settings_share_engines_and_keep_features_apart(small_bundle: Path) -> None:
    pipelines = video_run.open_pipelines(Bundle.open(small_bundle), "onnxruntime", "fp32", 1)
    assert len(pipelines) == len(SETTINGS)
    assert len({id(one.engines) for one in pipelines}) == 1
    assert len({id(one) for one in pipelines}) == len(SETTINGS)
    assert all(isinstance(one, Pipeline) for one in pipelines)


# --- the command


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/video.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_two_frames_from_end_to_end(small_bundle: Path, tmp_path: Path) -> None:
    done = run(
        *("--bundle", small_bundle, "--clips", "1", "--frames", "2", "--size", "96", "--engine", "fp32"),
        *("--threads", "1", "--out", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert "the backbone takes" in done.stderr
    assert "The weights are random" in done.stderr
    [data] = tmp_path.glob("cpu-*/tiny-video-onnxruntime-fp32.json")
    assert data.with_suffix(".png").stat().st_size > 20_000
    text = data.read_text()
    for private in (str(ROOT), str(tmp_path), str(small_bundle.parent), f"/{getpass.getuser()}/"):
        assert private not in text
    record = VideoRecord.model_validate_json(text)
    assert [(one.clip, one.reuse_global, one.crops) for one in record.scores] == [
        (clip, *setting) for clip in CLIPS for setting in SETTINGS
    ]
    full = record.scores[0]
    assert (full.speedup, full.agreement, full.crops_computed) == (1, 1, 1)
    assert record.scores[1].whole_computed == 0.5
    assert 0 < record.backbone_share < 1
    assert record.classes == 20 < len(VOCABULARY)


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--bundle", "nowhere"], "is not a bundle"), (["--backend", "x"], "backend is 'x'; expected auto or one of")],
)
def test_unusable_options(options: list[str], words: str, small_bundle: Path, tmp_path: Path) -> None:
    done = run("--bundle", small_bundle, "--out", tmp_path, *options)
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not list(tmp_path.iterdir())
