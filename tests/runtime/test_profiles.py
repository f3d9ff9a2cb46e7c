"""Profiles cover every shape that the pipeline sends, and no gap lies between the class buckets."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from runtime.bundle import Bundle
from runtime.errors import InputError
from runtime.profiles import BUCKETS, accepts, buckets, stage_profiles


def test_the_backbone_has_a_profile_for_each_size(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    stage = bundle.stage("backbone")
    crops, full = stage_profiles(bundle.manifest.pipeline, stage)
    assert crops.shapes["image"] == ((1, 3, 64, 64), (4, 3, 64, 64), (4, 3, 64, 64))
    assert full.shapes["image"] == ((1, 3, 96, 96),) * 3
    assert {shape[0] for shape in full.shapes["rope_sin"]} == {bundle.manifest.pipeline.prefix_tokens + 36}


def test_stages_without_a_dynamic_axis_have_one_shape(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    for name in ("anyup", "sam_encoder"):
        [profile] = stage_profiles(bundle.manifest.pipeline, bundle.stage(name))
        assert all(low == tuned == high for low, tuned, high in profile.shapes.values())


@pytest.mark.parametrize("most", [1, 20, 32, 33, 256, 1000, 4096])
def test_buckets_leave_no_gap(most: int) -> None:
    found = buckets(most)
    assert found[0][0] == 1
    assert found[-1][2] == most
    assert all(first[2] + 1 == second[0] for first, second in pairwise(found))
    assert all(low <= tuned <= high for low, tuned, high in found)


@pytest.mark.parametrize("most", [0, -3, BUCKETS[-1][-1] + 1])
def test_impossible_class_counts(most: int) -> None:
    with pytest.raises(InputError, match=rf"--most-classes is {most}; expected 1 to 4096"):
        buckets(most)


def test_every_call_of_the_pipeline_fits(small_bundle: Path) -> None:
    """Shapes as the pipeline makes them for class lists of many lengths."""
    bundle = Bundle.open(small_bundle)
    for name, largest in (("correlation", 256), ("refinement", 256), ("decoder", 32), ("text_encoder", 64)):
        stage = bundle.stage(name)
        profiles = stage_profiles(bundle.manifest.pipeline, stage)
        for count in (1, 5, 31, 32, 33, 64, 256, 257):
            shapes = {
                value.name: [count if axis == "classes" else axis for axis in value.shape] for value in stage.inputs
            }
            fits = any(accepts(profile, shapes) for profile in profiles)
            assert fits == (count <= largest), (name, count)


def test_a_padded_head_sees_no_more_classes(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    spec = bundle.manifest.pipeline.model_copy(update={"pad_len": 4})
    [profile] = stage_profiles(spec, bundle.stage("refinement"))
    assert profile.shapes["text"][2][0] == 4
