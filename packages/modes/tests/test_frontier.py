"""The frontier search against looking at every point (card, tests 9 to 11)."""

from __future__ import annotations

import random

import pytest
from fewstep_modes.frontier import GridPoint, exhaustive, frontier


class Table:
    """f and g by index, with the points that were asked for."""

    def __init__(self, f, g):
        self.f, self.g, self.asked = f, g, set()

    def __call__(self, q, p):
        self.asked.add((q, p))
        return self.f[q][p], self.g[q][p]


def monotone(size, chance, repeats):
    """A random table that never falls along a row or column; often it stays the same."""
    table = [[0.0] * size for _ in range(size)]
    for q in range(size):
        for p in range(size):
            before = max(table[q - 1][p] if q else 0.0, table[q][p - 1] if p else 0.0)
            table[q][p] = before + (0.0 if chance.random() < repeats else chance.random())
    return table


@pytest.mark.parametrize("prune", [True, False])
def test_the_frontier_finds_the_best_of_the_grid_with_few_evaluations(prune):
    chance = random.Random(0)
    for _ in range(200):
        size = chance.randint(1, 30)
        f, g = monotone(size, chance, 0.3), monotone(size, chance, 0.3)
        target = chance.random() * 1.1 * g[-1][-1]
        table = Table(f, g)
        point, best = frontier(size, target, table, prune=prune), exhaustive(size, target, Table(f, g))
        assert (point is None) == (best is None)
        if point and best:
            assert point.divergence == best.divergence and point.ratio >= target
        assert len(table.asked) <= (2 if prune else 3) * size + 1


def test_a_ratio_that_cannot_be_reached_and_one_that_is_there_already():
    chance = random.Random(1)
    f, g = monotone(9, chance, 0.0), monotone(9, chance, 0.0)
    assert frontier(9, g[-1][-1] + 1e-9, Table(f, g)) is None
    assert frontier(9, 0.0, Table(f, g)) == GridPoint(0, 0, f[0][0], g[0][0])


def test_a_divergence_that_falls_breaks_the_assumption_of_the_search():
    f, g = [[5, 1], [2, 9]], [[1, 1], [1, 1]]
    assert frontier(2, 0.5, Table(f, g), prune=False).divergence == 2
    assert frontier(2, 0.5, Table(f, g)).divergence == 5
    assert exhaustive(2, 0.5, Table(f, g)).divergence == 1
