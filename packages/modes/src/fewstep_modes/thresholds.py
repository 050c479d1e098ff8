"""Search of thresholds for one model: grids, evaluations that are remembered, and single settings by bisection."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from fewstep.errors import FewstepError
from fewstep.families.moe import MoeSite
from fewstep.families.vlm import NAMES, TEXT, VISION
from fewstep.fitting import Journal
from jaxtyping import Bool, Float
from torch import Tensor

from . import registry
from .calibration import Importance
from .fitted import Fitted, facts
from .frontier import exhaustive, frontier
from .method import MoDES, Threshold
from .reference import Reference
from .rule import Routed
from .skipping import Skipping

Grid = Literal["quantile", "official"]
NUDGE = 1e-6
CLOSE, MOST_STEPS = 0.002, 24


class Evaluator:
    """Divergence and skip ratios of methods on the calibration data, each setting measured once."""

    def __init__(self, reference: Reference, journal: Journal, told: Callable[[dict], None] = lambda found: None):
        self.reference, self.journal, self.told = reference, journal, told
        self.new = 0
        """Passes over the data that this evaluator made itself."""

    def __call__(self, method: Fitted) -> dict[str, float]:
        """``kl``, ``ratio``, ``ratio_text``, ``ratio_vision`` and ``seconds`` of `method` at its target."""
        prunable = list(getattr(method, "prunable", ()))
        key = ["eval", method.name, {name: method.point()[name] for name in method.values}, *prunable]
        if (found := self.journal.get(key)) is None:
            began = time.perf_counter()
            measured = self.reference.measure(method)
            stats = measured.stats
            shares = {f"ratio_{name}": stats.share(modality=kind) for kind, name in NAMES.items()}
            found = {"kl": measured.divergence, "ratio": stats.ratio, **shares}
            found = self.journal.put(key, {**found, "seconds": time.perf_counter() - began})
            self.new += 1
        self.told(found)
        return found


def search(
    model: Any,
    evaluate: Evaluator,
    importance: Importance | None,
    targets: Sequence[float],
    *,
    method: MoDES | None = None,
    size: int = 100,
    grid: Grid = "quantile",
    prune: bool = True,
    full: bool = False,
) -> MoDES:
    """The thresholds of least divergence for each target (sections 3.3 and 3.4).

    Args:
        model: what the evaluator's reference was made with.
        evaluate: remembers what it measured, over targets and interruptions.
        importance: what `fewstep_modes.calibrate` found; None for the ablation without it.
        targets: wanted shares of skipped pairs.
        method: with the score to use, and a class of its own for ablations.
        size: thresholds of each modality.
        grid: quantiles of the scores that the data gives, or the authors' fixed ones.
        prune: see `fewstep_modes.frontier.frontier`.
        full: evaluate all ``size x size`` points instead: the check of the search.

    Raises:
        FewstepError: a target is not reached even when all is skipped that may be.
    """
    base = method or MoDES()
    sites = registry.sites(model)
    base = replace(base, points=(), **facts(sites, ""))
    if importance:
        normal = Importance.normalised
        base = replace(base, alpha_text=normal(importance.text), alpha_vision=normal(importance.vision))
    text, vision = _grids(evaluate, base, sites, size, grid)

    def measured(q: int, p: int) -> tuple[float, float]:
        found = evaluate(base.setting(tau_text=text[q], tau_vision=vision[p]))
        return found["kl"], found["ratio"]

    points = []
    for target in targets:
        best = exhaustive(size, target, measured) if full else frontier(size, target, measured, prune=prune)
        if best is None:
            raise FewstepError(
                f"a ratio of {target:g} cannot be reached: special tokens keep their experts, and without all others "
                f"it is {measured(size - 1, size - 1)[1]:.3f}"
            )
        values = {"tau_text": text[best.text], "tau_vision": vision[best.vision]}
        points.append({"target": target, **values, **evaluate(base.setting(**values))})
    return replace(base, points=tuple(points), target=targets[-1])


def _grids(
    evaluate: Evaluator, base: MoDES, sites: list[MoeSite], size: int, grid: Grid
) -> tuple[list[float], list[float]]:
    """Ascending thresholds of text and vision."""
    if grid == "official":
        return official(size, 0.71), official(size, 0.60)
    key = ["grid", base.name, size]
    if (found := evaluate.journal.get(key)) is None:
        recorder = _Recorder(base=base)
        evaluate.reference.measure(recorder)
        found = evaluate.journal.put(key, [quantiles(recorder.seen[kind], size) for kind in (TEXT, VISION)])
    return found[0], found[1]


def official(size: int, last: float) -> list[float]:
    """``tau = 2 / (1 + exp(-10 (x - 1)))`` at even x from 0 to `last`: fits 25 to 50 layers and k of 6 to 8."""
    xs = [last * i / max(1, size - 1) for i in range(size)]
    return [2 / (1 + math.exp(-10 * (x - 1))) for x in xs]


def quantiles(scores: Sequence[Tensor], size: int) -> list[float]:
    """0, then thresholds just above the quantiles ``1/(size-1), ..., 1`` of the scores, so that each skips its own.

    Without scores (a text model has no vision tokens), all are 0.
    """
    ordered = torch.cat([torch.empty(0), *scores]).float().sort().values
    if not len(ordered) or size < 2:
        return [0.0] * size
    places = (torch.arange(1, size) * len(ordered) / (size - 1)).ceil().long().clamp(1, len(ordered)) - 1
    found = [float(value) * (1 + NUDGE) for value in ordered[places].double()]
    return [0.0, *found[:-1], max(found[-1], math.nextafter(float(ordered[-1]), math.inf) + 1e-30)]


class _Recorder(Skipping):
    """Skips nothing and notes the scores by modality."""

    name: ClassVar[str] = "record"

    def __init__(self, base: MoDES) -> None:
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "special", base.special)
        object.__setattr__(self, "pack", False)
        object.__setattr__(self, "seen", {kind: [] for kind in NAMES})

    base: MoDES
    seen: dict[int, list[Float[Tensor, " n"]]]

    def policy(self, sites: list[MoeSite]) -> _Recorder:
        rule = Threshold(self.base.factors(sites), dict.fromkeys(NAMES, 0.0), self.base.score)
        object.__setattr__(self, "rule", rule)
        return self

    def keep(self, site: MoeSite, routed: Routed) -> Bool[Tensor, "t k"]:
        """All of them."""
        scores: Tensor = self.rule.scores(site, routed)  # type: ignore[attr-defined]
        for kind in self.seen:
            self.seen[kind].append(scores[routed.kind == kind].flatten().cpu())
        return torch.ones_like(routed.index, dtype=torch.bool)


def bisect(evaluate: Evaluator, method: Fitted, targets: Sequence[float], low: float, high: float) -> Fitted:
    """One setting for each target: where the ratio, which rises from `low` to `high`, comes closest to the target.

    A target that is out of reach gets the setting `high`; its point says which ratio that is.
    """
    (name,) = method.values
    points = []
    for target in targets:
        best = {name: high, **evaluate(method.setting(**{name: high}))}
        below, above = low, high
        for _ in range(MOST_STEPS):
            middle = (below + above) / 2
            found = {name: middle, **evaluate(method.setting(**{name: middle}))}
            if abs(found["ratio"] - target) < abs(best["ratio"] - target):
                best = found
            if abs(best["ratio"] - target) <= CLOSE:
                break
            below, above = (middle, above) if found["ratio"] < target else (below, middle)
        points.append({"target": target, **best})
    sites = registry.sites(evaluate.reference.model)
    return replace(method, points=tuple(points), target=targets[-1], **facts(sites, ""))
