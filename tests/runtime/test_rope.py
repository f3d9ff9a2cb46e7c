"""Rotary tables, against the formula of the official code written with loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtime.rope import rope_tables

PERIODS = [1.0, 2.5, 11.0]


def angle(row: int, column: int, grid: tuple[int, int], dim: int) -> float:
    """Official: coords in [-1, 1] from patch centres, angles of rows then columns, tiled twice."""
    dim %= 2 * len(PERIODS)
    position, count = ((row, grid[0]), (column, grid[1]))[dim // len(PERIODS)]
    coordinate = 2 * (position + 0.5) / count - 1
    return 2 * math.pi * coordinate / PERIODS[dim % len(PERIODS)]


@pytest.mark.parametrize("grid", [(1, 1), (3, 2), (2, 5)])
@pytest.mark.parametrize("prefix", [0, 5])
def test_values(grid: tuple[int, int], prefix: int) -> None:
    sin, cos = rope_tables(PERIODS, grid, prefix)
    assert sin.shape == cos.shape == (prefix + grid[0] * grid[1], 4 * len(PERIODS))
    assert sin.dtype == cos.dtype == np.float32
    assert np.all(sin[:prefix] == 0)
    assert np.all(cos[:prefix] == 1)
    for row in range(grid[0]):
        for column in range(grid[1]):
            token = prefix + row * grid[1] + column
            angles = [angle(row, column, grid, dim) for dim in range(4 * len(PERIODS))]
            assert sin[token] == pytest.approx([math.sin(a) for a in angles], abs=1e-7)
            assert cos[token] == pytest.approx([math.cos(a) for a in angles], abs=1e-7)


def test_periods_are_taken_as_given() -> None:
    """Released periods are rounded to bfloat16; a table from the exact ones differs visibly."""
    exact = 100 ** (np.arange(16, dtype=np.float32) / 16)
    rounded = (exact.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).tolist()
    first, second = rope_tables(rounded, (40, 40), 5)[0], rope_tables(exact.tolist(), (40, 40), 5)[0]
    assert np.abs(first - second).max() > 1e-3
    assert np.array_equal(first, rope_tables(tuple(rounded), (40, 40), 5)[0])
