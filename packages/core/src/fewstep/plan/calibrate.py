"""Fit the ceilings of a machine that is not at hand to rows of its unchanged models; methods have no say in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..roofline import Ceiling, Machine, Phase, merged, total

START = {"flops": 150e9, "bandwidth": 20e9, "launch": 8e-6}
"""Where the fit starts from, and near what it stays where rows do not tell: a CPU of two cores."""
STAY = 0.01
"""Weight of the squared distance from there, beside the logarithms of the errors."""
ROUND = 0.05
"""Logarithms of errors below this count as their squares do, those above as they are."""
STEPS = (2.0, 1.3, 1.1, 1.03, 1.01)
_FREE = ("matmul", "attention", "conv2d", "conv3d", "elementwise")


@dataclass(frozen=True)
class Observation:
    """Seconds of one request of an unchanged model."""

    phases: tuple[Phase, ...]
    seconds: float


def fit(observed: Sequence[Observation], name: str, source: str) -> Machine:
    """The machine on which these take closest to their time, by coordinate descent over logarithms of the ceilings."""
    runs = [replace(one, phases=tuple(map(merged, one.phases))) for one in observed]
    point = {f"{kind}.{of}": 0.0 for kind in _FREE for of in ("flops", "bandwidth")} | {"launch": 0.0}
    best = _loss(point, runs)
    for step in STEPS:
        better = True
        while better:
            better = False
            for key in point:
                for by in (math.log(step), -math.log(step)):
                    moved = {**point, key: point[key] + by}
                    if (loss := _loss(moved, runs)) < best - 1e-9:
                        point, best, better = moved, loss, True
    return replace(_machine(point), name=name, source=source)


def _loss(point: dict[str, float], runs: Sequence[Observation]) -> float:
    machine = _machine(point)
    # nearly the absolute value of the logarithm: one run on a busy machine must not bend the rest
    errors = sum(math.hypot(math.log(total(one.phases, machine) / one.seconds), ROUND) for one in runs)
    return errors + STAY * sum(value**2 for value in point.values())


def _machine(point: dict[str, float]) -> Machine:
    """The machine whose ceilings are `START` times the exponentials of `point`."""
    ceilings = {
        kind: Ceiling(
            flops=START["flops"] * math.exp(point[f"{kind}.flops"]),
            bandwidth=START["bandwidth"] * math.exp(point[f"{kind}.bandwidth"]),
        )
        for kind in _FREE
    }
    launch = START["launch"] * math.exp(point["launch"])
    return Machine(name="fit", ceilings=ceilings, launch=launch, memory=8e9, ahead=False)
