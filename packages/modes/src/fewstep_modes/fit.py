"""``fewstep fit`` for every method of this package: calibration and search, with progress, resumable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from fewstep.contract import Loaded
from fewstep.errors import FewstepError
from fewstep.fitting import Journal
from rich.progress import Progress, TimeRemainingColumn

from . import data, registry
from .calibration import Disabled, Importance, calibrate
from .fitted import Fitted, facts
from .method import DMT, GMLG, MoDES, Single
from .peers import NAEE, REAP, MCMoE, ReduceK
from .reap import saliency
from .reference import Loss, Reference, fingerprint
from .rule import Score
from .thresholds import Evaluator, Grid, bisect, search

PRUNABLE = 5 / 8
"""Share of the layers in which MC-MoE skips: 20 of 32 in its paper."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The data, and how to go on."""

    samples: int = 192
    """Samples of the calibration data."""
    batch: int = 96
    """Samples that are run at once, where they come from a task."""
    task: str = "digit-qa"
    """Task that brings the data: a part of it that the task itself never measures on."""
    data: Path | None = None
    """Your own data instead: JSON lines with prompt, answer and (optional, relative to the file) image."""
    seed: int = 0
    """Of the samples that are drawn."""
    pack: bool = False
    """Let the fitted method keep a packed copy of the experts' weights: faster on a CPU, twice the memory."""
    resume: bool = True
    """Go on with what an interrupted fit in the same folder has measured."""

    def __call__(self, loaded: Loaded, out: Path) -> Any:
        """Fit to the model; everything that was measured is in ``out/fit.jsonl``."""
        registry.sites(loaded.model)
        batches = self._batches(loaded)
        settings = {"model": loaded.name, "data": fingerprint(batches), **self.depends()}
        journal = Journal(out / "fit.jsonl", settings, resume=self.resume)
        columns = [*Progress.get_default_columns()[:-1], TimeRemainingColumn()]
        with Progress(*columns, transient=True) as bar:
            found = self.fitted(loaded.model, batches, journal, bar)
        source = self.data.name if self.data else self.task
        found = replace(found, pack=self.pack)
        about = {"model": loaded.name, "calibration": f"{source}, {self.samples} samples, seed {self.seed}"}
        return replace(found, **about) if isinstance(found, Fitted) else found

    def _batches(self, loaded: Loaded) -> list[Any]:
        if self.samples < 1 or self.batch < 1:
            raise ValueError(f"samples and batch must be at least 1, found {self.samples} and {self.batch}")
        if self.data is not None:
            return data.of_file(self.data, loaded, self.samples, self.seed)
        return data.of_task(self.task, loaded, self.samples, self.batch, self.seed)

    def depends(self) -> dict[str, Any]:
        """Options beside the data that what is measured depends on."""
        return {}

    def fitted(self, model: Any, batches: list[Any], journal: Journal, bar: Progress) -> Any:
        """The method for this model."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FitMoDES(Calibrated):
    """Layer importances, then two thresholds for each wanted ratio."""

    kind: ClassVar[type[MoDES]] = MoDES

    targets: tuple[float, ...] = (0.5, 0.67, 0.75)
    """Wanted shares of skipped pairs."""
    size: int = 100
    """Thresholds of each modality."""
    grid: Grid = "quantile"
    """Quantiles of what this model's routers say, or the fixed thresholds of the authors' code."""
    score: Score = "topk_norm"
    """Routing weight normalised over the selected experts, or softmax over all."""
    per_modality: bool = True
    """Importances of text and vision apart, as in the authors' code; otherwise one for each layer, as in the paper."""
    disabled: Disabled = "zero"
    """What a layer without experts adds while importances are measured."""
    loss: Loss = "kl"
    """How far answers are apart: KL, or squared difference of logits."""
    prune: bool = True
    """Leave out points that cannot be better if divergence rises with the thresholds."""

    def depends(self) -> dict[str, Any]:
        return {"loss": self.loss, "per_modality": self.per_modality, "score": self.score, "grid": self.grid}

    def fitted(self, model: Any, batches: list[Any], journal: Journal, bar: Progress) -> MoDES:
        reference = Reference(model, batches, loss=self.loss)
        importance = None
        if self.kind is MoDES:
            importance = _importance(reference, journal, bar, self.per_modality, self.disabled, self.loss)
        most = len(self.targets) * (2 + (not self.prune)) * self.size + 1
        job = bar.add_task("searching (at most)", total=most)
        evaluate = Evaluator(reference, journal, lambda _: bar.advance(job))
        base = self.kind(score=self.score)
        return search(
            model, evaluate, importance, self.targets, method=base, size=self.size, grid=self.grid, prune=self.prune
        )


def _importance(
    reference: Reference, journal: Journal, bar: Progress, per_modality: bool, disabled: Disabled, loss: Loss
) -> Importance:
    def track(steps: Iterable, total: int) -> Iterable:
        return bar.track(steps, total, description="importance of layers")

    return calibrate(
        reference.model, (), per_modality=per_modality, disabled=disabled, loss=loss, journal=journal,
        track=track, reference=reference,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FitDMT(FitMoDES):
    """Two thresholds for each wanted ratio, without importances."""

    kind: ClassVar[type[MoDES]] = DMT


@dataclass(frozen=True, kw_only=True)
class FitOne(Calibrated):
    """The one setting of a method for each wanted ratio, by bisection."""

    method: ClassVar[Fitted] = Single()
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    targets: tuple[float, ...] = (0.5, 0.67, 0.75)
    """Wanted shares of skipped pairs."""

    def fitted(self, model: Any, batches: list[Any], journal: Journal, bar: Progress) -> Any:
        reference = Reference(model, batches)
        base = self.base(reference, journal, bar)
        job = bar.add_task("searching", total=None)
        evaluate = Evaluator(reference, journal, lambda _: bar.advance(job))
        return bisect(evaluate, base, self.targets, self.low, self.high)

    def base(self, reference: Reference, journal: Journal, bar: Progress) -> Fitted:
        """The method before its setting is known."""
        return self.method


@dataclass(frozen=True, kw_only=True)
class FitSingle(FitOne):
    """One threshold for each wanted ratio."""


@dataclass(frozen=True, kw_only=True)
class FitNAEE(FitOne):
    """The share of the tail for each wanted ratio."""

    method: ClassVar[Fitted] = NAEE()


@dataclass(frozen=True, kw_only=True)
class FitGMLG(FitOne):
    """One importance for each layer, then one threshold for each wanted ratio."""

    method: ClassVar[Fitted] = GMLG()

    def base(self, reference: Reference, journal: Journal, bar: Progress) -> Fitted:
        found = Importance.normalised(_importance(reference, journal, bar, True, "zero", "kl").shared)
        return GMLG(alpha_text=found, alpha_vision=found)


@dataclass(frozen=True, kw_only=True)
class FitMCMoE(FitOne):
    """Which layers matter least, then the share of the tail for each wanted ratio."""

    method: ClassVar[Fitted] = MCMoE()

    def base(self, reference: Reference, journal: Journal, bar: Progress) -> Fitted:
        found = _importance(reference, journal, bar, True, "zero", "kl").shared
        layers = [site.layer for site in registry.sites(reference.model)]
        order = sorted(range(len(layers)), key=lambda i: found[i])[: max(1, round(PRUNABLE * len(layers)))]
        return MCMoE(prunable=tuple(sorted(layers[i] for i in order)))

    def fitted(self, model: Any, batches: list[Any], journal: Journal, bar: Progress) -> Any:
        reference = Reference(model, batches)
        base: Any = self.base(reference, journal, bar)
        evaluate = Evaluator(reference, journal)
        reached = evaluate(base.setting(beta=self.high))["ratio"]
        if reached < max(self.targets):  # at high ratios its five layers in eight are not enough
            base = replace(base, prunable=())
        return bisect(evaluate, base, self.targets, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class FitReduceK(FitOne):
    """The number of experts for each wanted ratio, which special tokens keep in full."""

    method: ClassVar[Fitted] = ReduceK()

    def fitted(self, model: Any, batches: list[Any], journal: Journal, bar: Progress) -> Any:
        top = max(site.top_k for site in registry.sites(model))
        evaluate = Evaluator(Reference(model, batches), journal)
        parts = 2 * top * len(registry.sites(model))
        keeps = [top * (1 - step / parts) for step in range(parts + 1)]
        points = []
        for target in self.targets:
            low, high = 0, len(keeps) - 1  # the ratio rises with the step; the first that reaches the target
            while low < high:
                middle = (low + high) // 2
                reached = evaluate(ReduceK().setting(keep=keeps[middle]))["ratio"] >= target - 1e-9
                low, high = (low, middle) if reached else (middle + 1, high)
            near = [keeps[step] for step in (low - 1, low) if step >= 0]
            found = [{"keep": keep, **evaluate(ReduceK().setting(keep=keep))} for keep in near]
            best = min(found, key=lambda one: abs(one["ratio"] - target))
            if best["ratio"] < target - 0.02:
                raise FewstepError(f"reduce-k skips at most {best['ratio']:.3f} of the pairs, not {target:g}")
            points.append({"target": target, **best})
        sites = registry.sites(model)
        return ReduceK(points=tuple(points), target=self.targets[-1], **facts(sites, ""))


@dataclass(frozen=True, kw_only=True)
class FitREAP(Calibrated):
    """The experts of each layer that contribute least."""

    remove: float = 0.5
    """Share of each layer's experts."""

    def depends(self) -> dict[str, Any]:
        return {}

    def fitted(self, model: Any, batches: list[Any], journal: Journal, bar: Progress) -> REAP:
        if not 0 <= self.remove < 1:
            raise ValueError(f"remove must be in [0, 1), found {self.remove}")
        sites = registry.sites(model)
        scores = saliency(model, batches)
        removed = tuple(
            tuple(sorted(scores[site.layer].argsort(stable=True)[: round(self.remove * site.count)].tolist()))
            for site in sites
        )
        return REAP(
            removed=removed,
            experts=max(site.count for site in sites),
            top_k=max(site.top_k for site in sites),
            layers=tuple(site.layer for site in sites),
        )
