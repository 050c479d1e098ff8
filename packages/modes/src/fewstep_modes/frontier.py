"""Search of thresholds for one model: the frontier of a grid, grids, stored evaluations, and single settings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from fewstep.errors import FewstepError
from fewstep.families.moe import MoeSite
from fewstep.families.vlm import NAMES, TEXT, VISION
from fewstep.fitting import Journal
from jaxtyping import Bool
from torch import Tensor

from . import registry
from .calibration import Importance, Reference
from .method import DMT, FittedMethod, MoDES, model_facts
from .rule import RouterOutput
from .skipping import skip

Grid = Literal["quantile", "official"]
"""Quantiles of the scores that the data gives, or the authors' fixed thresholds."""
Evaluate = Callable[[int, int], tuple[float, float]]
"""``(q, p) -> (f, g)``: divergence and skip ratio at the q-th text and the p-th vision threshold."""
TwoThresholds = TypeVar("TwoThresholds", MoDES, DMT)
AnyFitted = TypeVar("AnyFitted", bound=FittedMethod)
NUDGE = 1e-6
"""Relative distance of a threshold above its quantile, so that the quantile itself is skipped."""
TOLERANCE, MOST_STEPS = 0.002, 24
"""Distance from the wanted ratio at which a bisection ends, and its most steps."""


@dataclass(frozen=True)
class GridPoint:
    """A pair of thresholds, with its divergence and skip ratio."""

    text: int
    """Index of the text threshold."""
    vision: int
    """Index of the vision threshold."""
    divergence: float
    ratio: float


def frontier(size: int, target: float, evaluate: Evaluate, *, prune: bool = True) -> GridPoint | None:
    """Find the point of least divergence with ``g >= target`` on the frontier of a ``size x size`` grid (section 3.4).

        minimise f(tau_text, tau_vision)   subject to   g(tau_text, tau_vision) >= target

    If f and g never fall along either axis it is the best of the whole grid. For each text threshold the smallest
    vision threshold that reaches the target is found by walking down from where the row before stopped.

    Args:
        size: thresholds of each axis, ascending.
        target: ratio to reach, in [0, 1].
        evaluate: called at most ``2 size + 1`` times for different points, ``3 size + 1`` without pruning; the same
            point may be asked for again, so let it remember.
        prune: leave out rows that stop where the row before did: there f can only be larger. The authors' code does
            not.

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
        divergence, ratio = evaluate(row, first)
        if best is None or divergence < best.divergence:
            best = GridPoint(row, first, divergence, ratio)
    return best


def exhaustive(size: int, target: float, evaluate: Evaluate) -> GridPoint | None:
    """Find the best of all ``size x size`` points: the specification of `frontier`."""
    best = None
    for row in range(size):
        for column in range(size):
            divergence, ratio = evaluate(row, column)
            if ratio >= target and (best is None or divergence < best.divergence):
                best = GridPoint(row, column, divergence, ratio)
    return best


class Evaluator:
    """Divergence and skip ratios of methods on the calibration data, each setting measured once."""

    def __init__(
        self, reference: Reference, journal: Journal | None = None, progress: Callable[[], object] = lambda: None
    ) -> None:
        """Keep evaluations in `journal`, or in memory, and call `progress` after each."""
        self.reference, self.journal, self.progress = reference, journal or Journal(None, None), progress
        self.passes = 0
        """Passes over the data that this evaluator made itself."""

    def __call__(self, method: FittedMethod) -> dict[str, float]:
        """Return ``kl``, ``ratio``, ``ratio_text``, ``ratio_vision`` and ``seconds`` of `method` at its target."""
        key = ["evaluation", self.reference.loss, method.key()]
        if (stored := self.journal.get(key)) is None:
            began = time.perf_counter()
            divergence, counts = self.reference.measure(method.apply)
            shares = {f"ratio_{name}": counts.share(modality=kind) for kind, name in NAMES.items()}
            values = {"kl": divergence, "ratio": counts.ratio, **shares}
            stored = self.journal.put(key, {**values, "seconds": time.perf_counter() - began})
            self.passes += 1
        self.progress()
        return stored


def search(
    evaluate: Evaluator,
    base: TwoThresholds,
    targets: Sequence[float],
    *,
    importance: Importance | None = None,
    size: int = 100,
    grid: Grid = "quantile",
    best: Callable[[int, float, Evaluate], GridPoint | None] = frontier,
) -> TwoThresholds:
    """Find the two thresholds of least divergence for each target (sections 3.3 and 3.4).

    Args:
        evaluate: remembers what it measured, over targets and interruptions.
        base: method with the score to use; its thresholds are replaced.
        targets: wanted shares of skipped pairs, each in [0, 1].
        importance: of each layer's experts; None for equal ones.
        size: thresholds of each modality.
        grid: quantiles of the scores that the data gives, or the authors' fixed thresholds.
        best: `frontier`, or `exhaustive` to check it.

    Raises:
        FewstepError: a target is not reached even when all is skipped that may be.
    """
    sites = registry.sites(evaluate.reference.model)
    base = replace(base, points=(), **model_facts(sites))
    if importance:
        normal = Importance.normalised
        base = replace(base, alpha_text=normal(importance.text), alpha_vision=normal(importance.vision))
    text, vision = _grids(evaluate, base, sites, size, grid)

    def measured(q: int, p: int) -> tuple[float, float]:
        evaluation = evaluate(base.at(tau_text=text[q], tau_vision=vision[p]))
        return evaluation["kl"], evaluation["ratio"]

    points = []
    for target in targets:
        point = best(size, target, measured)
        if point is None:
            raise FewstepError(
                f"a ratio of {target:g} cannot be reached: special tokens keep their experts, and without all others "
                f"it is {measured(size - 1, size - 1)[1]:.3f}"
            )
        settings = {"tau_text": text[point.text], "tau_vision": vision[point.vision]}
        points.append({"target": target, **settings, **evaluate(base.at(**settings))})
    return replace(base, points=tuple(points), target=targets[-1])


def _grids(
    evaluate: Evaluator, base: MoDES | DMT, sites: Sequence[MoeSite], size: int, grid: Grid
) -> tuple[list[float], list[float]]:
    """Return ascending thresholds of text and vision."""
    if grid == "official":
        return official_grid(size, 0.71), official_grid(size, 0.60)
    neutral = base.at(**base.neutral)
    key = ["grid", neutral.key(), size]
    if (stored := evaluate.journal.get(key)) is None:
        thresholds, scores = neutral.policy(sites), {kind: [] for kind in NAMES}

        def record(site: MoeSite, routed: RouterOutput) -> Bool[Tensor, "t k"]:
            of_layer = thresholds.scores(site, routed)
            for kind, recorded in scores.items():
                recorded.append(of_layer[routed.kind == kind].flatten().cpu())
            return torch.ones_like(routed.index, dtype=torch.bool)

        evaluate.reference.measure(lambda model: skip(model, sites, record, base, special=base.special))
        stored = evaluate.journal.put(key, [quantile_grid(scores[kind], size) for kind in (TEXT, VISION)])
    return stored[0], stored[1]


def official_grid(size: int, last: float) -> list[float]:
    """Return the authors' thresholds at even x from 0 to `last`: they fit 25 to 50 layers and k of 6 to 8.

    tau = 2 / (1 + exp(-10 (x - 1)))
    """
    xs = [last * i / max(1, size - 1) for i in range(size)]
    return [2 / (1 + math.exp(-10 * (x - 1))) for x in xs]


def quantile_grid(scores: Sequence[Tensor], size: int) -> list[float]:
    """Return 0, then thresholds just above the quantiles ``1/(size-1), ..., 1`` of the scores.

    Each skips the scores up to its quantile. Without scores (a text model has no vision tokens), all are 0.
    """
    ordered = torch.cat([torch.empty(0), *scores]).float().sort().values
    if not len(ordered) or size < 2:
        return [0.0] * size
    places = (torch.arange(1, size) * len(ordered) / (size - 1)).ceil().long().clamp(1, len(ordered)) - 1
    above = [float(value) * (1 + NUDGE) for value in ordered[places].double()]
    return [0.0, *above[:-1], max(above[-1], math.nextafter(float(ordered[-1]), math.inf) + 1e-30)]


def bisect(
    evaluate: Evaluator,
    method: AnyFitted,
    targets: Sequence[float],
    low: float = 0.0,
    high: float = 1.0,
    step: Callable[[float], float] = float,
) -> AnyFitted:
    """Find the one setting of `method` whose ratio, rising from `low` to `high`, comes closest to each target.

    A target that is out of reach gets the setting `high`; its point holds the ratio that was reached. `step` gives the
    nearest setting that is tried.
    """
    (name,) = method.neutral
    points = []
    for target in targets:
        best: dict[str, Any] = {name: high, **evaluate(method.at(**{name: high}))}
        below, above = low, high
        for _ in range(MOST_STEPS):
            middle = (below + above) / 2
            tried = {name: step(middle), **evaluate(method.at(**{name: step(middle)}))}
            if abs(tried["ratio"] - target) < abs(best["ratio"] - target):
                best = tried
            if abs(best["ratio"] - target) <= TOLERANCE:
                break
            below, above = (middle, above) if tried["ratio"] < target else (below, middle)
        points.append({"target": target, **best})
    facts = model_facts(registry.sites(evaluate.reference.model))
    return replace(method, points=tuple(points), target=targets[-1], **facts)
