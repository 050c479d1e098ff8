"""The three phases of the distillation as functions of the step; the paper does not print them, these are ours.

1. align: features of all stages and the teacher's pixels; 2. joint: pixels with a feature term that fades; 3. refine:
pixels only. (Section 3 of arXiv:2602.19161; the shares and rates are defaults of our own.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ALIGN, JOINT = 0.2, 0.8
"""Shares of the run at which the phases end."""


@dataclass(frozen=True)
class Phase:
    """What holds in one step."""

    name: str
    feature: float
    """Weight of the feature term, ``lam``."""
    pixel: float
    """Weight of the pixel terms; in ``align`` only the distance to the teacher's pixels counts."""


def phase(step: int, steps: int, features: bool = True) -> Phase:
    """The phase of step number `step` (from 0) of `steps`; without `features` there are pixels only."""
    done = step / max(1, steps - 1)
    if not features or done > JOINT:
        return Phase("refine", 0.0, 1.0)
    if done < ALIGN:
        return Phase("align", 1.0, 0.0)
    return Phase("joint", fading((done - ALIGN) / (JOINT - ALIGN)), 1.0)


def fading(progress: float) -> float:
    """``lam(t)``: a cosine from 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def lengths(steps: int) -> dict[str, int]:
    """Steps of each phase; they add up to `steps`."""
    found = {"align": 0, "joint": 0, "refine": 0}
    for step in range(steps):
        found[phase(step, steps).name] += 1
    return found
