"""The soak run finds lost memory and swapped results, and passes where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import soak
from runtime.errors import ParityError
from runtime.segmenter import Segmenter

MB = 1_000_000


def test_a_short_run(small_bundle: Path) -> None:
    arguments = ["--bundle", str(small_bundle), "--minutes", "0.05", "--callers", "4", "--largest", "64"]
    result = CliRunner().invoke(soak.app, arguments)
    assert result.exit_code == 0, result.output
    assert f"{soak.CASES} photos and class lists, 4 callers" in result.output


def test_swapped_results_are_found(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="random weights"):
        segmenter = Segmenter.load(small_bundle, cache_dir=None)
    with segmenter:
        cases = soak.make_cases((), 48, seed=0)
        segment = soak.segment
        monkeypatch.setattr(soak, "segment", lambda found, case: 1 + segment(found, case))
        log = soak.soak(segmenter, cases, 20.0, 2, seed=0)
    with pytest.raises(ParityError, match=r"frame \d+: another result than before for photo \d+"):
        soak.check(log)


def test_the_same_seed_gives_the_same_cases() -> None:
    first, again = (soak.make_cases(("a", "b", "c"), 40, seed=3) for _ in range(2))
    assert all(np.array_equal(one.photo, other.photo) for one, other in zip(first, again, strict=True))
    assert [one.classes for one in first] == [other.classes for other in again]
    assert first[0].photo.shape == (40, 40, 3)
    assert len({case.photo.shape for case in first}) > soak.CASES // 2


@pytest.mark.parametrize(
    ("used", "grows"),
    [
        ([900, 1000, 1000, 1001, 1000, 1002, 1001, 1000], False),
        ([100, 500, 1000, 1000, 1000, 1000, 1000, 1000], False),  # until it has settled
        ([1000, 1100, 1200, 1300, 1400, 1500, 1600, 1700], True),
        ([10, 10, 10, 10, 30, 30, 30, 30], False),  # less than an arena's step
    ],
)
def test_growth(used: list[int], grows: bool) -> None:
    samples = [(float(second), megabytes * MB) for second, megabytes in enumerate(used)]
    assert bool(soak.growth(samples)) == grows
    log = soak.Log(host=samples)
    if grows:
        with pytest.raises(ParityError, match=r"host memory grows: \d+ MB in the first half, 1700 MB in the second"):
            soak.check(log)
    else:
        soak.check(log)
