"""The frontier search of MoDES (algorithm B): the best pair of thresholds that reaches a skip ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Evaluate = Callable[[int, int], tuple[float, float]]
"""``(q, p) -> (f, g)``: divergence and skip ratio at the q-th text and the p-th vision threshold."""


@dataclass(frozen=True)
class Best:
    """What a search found."""

    text: int
    """Index of the text threshold."""
    vision: int
    divergence: float
    ratio: float


def frontier(size: int, target: float, evaluate: Evaluate, *, prune: bool = True) -> Best | None:
    """The point of least divergence with ``g >= target`` on the frontier of a ``size x size`` grid (section 3.4).

    If f and g never fall along either axis it is the best of the whole grid. For each text threshold the smallest
    vision threshold that reaches the target is found by walking down from where the row before stopped.

    Args:
        size: thresholds of each axis, ascending.
        target: ratio to reach.
        evaluate: called at most ``2 size + 1`` times for different points, ``3 size + 1`` without pruning; the same
            point may be asked for again, so let it remember.
        prune: leave out rows that stop where the row before did: there f can only be larger.

    Returns:
        The first best point, or None where even the highest thresholds do not reach the target.
    """
    last = size - 1
    if evaluate(last, last)[1] < target:
        return None
    best, at = None, last
    for row in range(size):
        before = at
        while at >= 0 and evaluate(row, at)[1] >= target:
            at -= 1
        first = at + 1
        if first > last or (prune and at == before):
            continue
        found, ratio = evaluate(row, first)
        if best is None or found < best.divergence:
            best = Best(row, first, found, ratio)
    return best


def exhaustive(size: int, target: float, evaluate: Evaluate) -> Best | None:
    """The best of all ``size x size`` points: the specification of `frontier`."""
    best = None
    for row in range(size):
        for column in range(size):
            found, ratio = evaluate(row, column)
            if ratio >= target and (best is None or found < best.divergence):
                best = Best(row, column, found, ratio)
    return best
