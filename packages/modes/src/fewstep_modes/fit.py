"""``fewstep fit`` for every method of this package: calibration data, calibration and search; resumable."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from fewstep import plugins
from fewstep.contract import CalibrationBatch, CalibrationTask, Loaded
from fewstep.errors import FewstepError
from fewstep.families import vlm
from fewstep.fitting import Journal, progress_bar

from . import registry
from .baselines import NAEE, REAP, MCMoE, ReduceK, saliency
from .calibration import Disabled, Importance, Loss, Reference, calibrate
from .frontier import Evaluator, Grid, bisect, frontier, search
from .method import DMT, GMLG, FittedMethod, MoDES, Single, model_facts
from .rule import RoutingScore

PRUNABLE = 5 / 8
"""Share of the layers in which MC-MoE skips: 20 of 32 in its paper."""
SHORT = 0.02
"""Distance below the wanted ratio at which reduce-k, whose ratios come in steps, is refused."""


def _free(default: Any) -> Any:
    """Declare an option that stored measurements do not depend on, or that their keys hold."""
    return field(default=default, metadata={"free": True})


class Session:
    """The model, calibration data, journal and progress bar of one fit."""

    def __init__(
        self,
        model: Any,
        batches: list[CalibrationBatch],
        journal: Journal,
        bar: Any,
        loss: Loss,
        special: tuple[int, ...],
    ) -> None:
        self.model, self.batches, self.journal, self.bar, self.loss = model, batches, journal, bar, loss
        self.special = special
        self.sites = registry.sites(model)

    @cached_property
    def reference(self) -> Reference:
        """The unchanged model on the data."""
        return Reference(self.model, self.batches, loss=self.loss)

    def importance(self, per_modality: bool = True, disabled: Disabled = "zero") -> Importance:
        """Calibrate, or read back, the importance of every layer."""
        track = partial(self.bar.track, description="importance of layers")
        return calibrate(
            self.reference,
            per_modality=per_modality,
            disabled=disabled,
            special=self.special,
            journal=self.journal,
            track=track,
        )

    def evaluator(self, most: int | None = None) -> Evaluator:
        """Make an evaluator whose progress is shown, of `most` evaluations."""
        job = self.bar.add_task("searching (at most)" if most else "searching", total=most)
        return Evaluator(self.reference, self.journal, lambda: self.bar.advance(job))


@dataclass(frozen=True, kw_only=True)
class SkipFitting:
    """Calibration data, and how a fit resumes."""

    samples: int = _free(192)
    """Samples of the calibration data."""
    batch: int = _free(96)
    """Samples that are run at once, where they come from a task."""
    task: str = _free("digit-qa")
    """Task that brings the data: a part of it that the task itself never measures on."""
    data: Path | None = _free(None)
    """Your own data instead: JSON lines with prompt, answer and (optional, relative to the file) image."""
    seed: int = _free(0)
    """Seed of the samples that are drawn."""
    special: tuple[int, ...] | None = _free(None)
    """Ids of tokens that keep all their experts, in the fitted method too; None takes the special ones of the tokenizer
    and of the configuration."""
    pack: bool = _free(False)
    """Let the fitted method keep a packed copy of the experts' weights: faster on a CPU, twice the memory."""
    resume: bool = _free(True)
    """Go on with what an interrupted fit in the same folder has measured."""

    def __call__(self, loaded: Loaded, out: Path) -> Any:
        """Fit to the model; everything that was measured is in ``out/fit.jsonl``.

        Raises:
            UnsupportedModelError: the model has no routed experts.
            FewstepError: no calibration data, other settings than in `out`, or a ratio out of reach.
            BadFileError: the data or the journal is damaged.
            ValueError: an option is out of range.
        """
        registry.sites(loaded.model)
        batches = self.batches(loaded)
        special = vlm.special_ids_of(loaded) if self.special is None else self.special
        settings = {"model": loaded.name, "dtype": str(loaded.model.dtype), "data": digest(batches), **self.depends()}
        settings["special"] = list(special)
        journal = Journal(out / "fit.jsonl", settings, resume=self.resume)
        with progress_bar() as bar:
            session = Session(loaded.model, batches, journal, bar, getattr(self, "loss", "kl"), special)
            method = replace(self.fitted(session), pack=self.pack)
        source = self.data.name if self.data else self.task
        about = {"model": loaded.name, "calibration": f"{source}, {self.samples} samples, seed {self.seed}"}
        return replace(method, **about) if isinstance(method, FittedMethod) else method

    def batches(self, loaded: Loaded) -> list[CalibrationBatch]:
        """Draw the calibration data.

        Raises:
            UnknownNameError: there is no such task.
            FewstepError: the task offers no calibration data.
            BadFileError: the file, or an image that it names, cannot be read.
            ValueError: fewer than one sample.
        """
        if self.samples < 1 or self.batch < 1:
            raise ValueError(f"samples and batch must be at least 1, found {self.samples} and {self.batch}")
        if self.data is not None:
            return vlm.calibration_of_file(self.data, loaded, self.samples, self.seed)
        task = plugins.find(plugins.tasks(), self.task, "task").load()()
        if not isinstance(task, CalibrationTask):
            raise FewstepError(f"the task {self.task} offers no calibration data; give a file of your own with --data")
        return task.calibration(loaded, self.samples, self.batch, self.seed)

    def depends(self) -> dict[str, Any]:
        """Return the options that stored measurements depend on and their keys do not hold."""
        fields = [f for f in dataclasses.fields(self) if "free" not in f.metadata]
        return {f.name: getattr(self, f.name) for f in fields}

    def fitted(self, session: Session) -> Any:
        """Return the method for this model."""
        raise NotImplementedError


def digest(batches: Sequence[CalibrationBatch]) -> str:
    """Hash every tensor of the calibration data, with its name, type and shape."""
    hasher = hashlib.sha256()
    for batch in batches:
        for name, tensor in sorted({**batch["inputs"], "score_mask": batch["score_mask"]}.items()):
            hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


@dataclass(frozen=True, kw_only=True)
class FitMoDES(SkipFitting):
    """Layer importances, then two thresholds for each wanted ratio."""

    targets: tuple[float, ...] = _free((0.5, 0.67, 0.75))
    """Wanted shares of skipped pairs."""
    size: int = _free(100)
    """Thresholds of each modality."""
    grid: Grid = "quantile"
    """Quantiles of what this model's routers say, or the fixed thresholds of the authors' code."""
    score: RoutingScore = "topk_norm"
    """Routing weight normalised over the selected experts, or softmax over all."""
    per_modality: bool = True
    """Importances of text and vision apart, as in the authors' code; otherwise one for each layer, as in the paper."""
    disabled: Disabled = "zero"
    """Output of a layer's routed experts while its importance is measured; identity, as in the authors' code, is its
    input."""
    loss: Loss = "kl"
    """Distance between answers: KL, or squared difference of logits."""
    prune: bool = _free(True)
    """Leave out points that cannot be better if divergence rises with the thresholds; the authors' code does not."""

    def fitted(self, session: Session) -> Any:
        """Calibrate, then search."""
        return self.searched(
            session,
            MoDES(score=self.score, special=session.special),
            session.importance(self.per_modality, self.disabled),
        )

    def searched(self, session: Session, base: Any, importance: Importance | None) -> Any:
        """Search two thresholds for each target, beginning with `base`."""
        evaluate = session.evaluator(len(self.targets) * (2 + (not self.prune)) * self.size + 1)
        best = partial(frontier, prune=self.prune)
        return search(evaluate, base, self.targets, importance=importance, size=self.size, grid=self.grid, best=best)


@dataclass(frozen=True, kw_only=True)
class FitDMT(FitMoDES):
    """Two thresholds for each wanted ratio, without importances."""

    def fitted(self, session: Session) -> Any:
        """Search."""
        return self.searched(session, DMT(score=self.score, special=session.special), None)


@dataclass(frozen=True, kw_only=True)
class FitSingle(SkipFitting):
    """One threshold for each wanted ratio, by bisection."""

    method: ClassVar[FittedMethod] = Single()

    targets: tuple[float, ...] = _free((0.5, 0.67, 0.75))
    """Wanted shares of skipped pairs."""

    def fitted(self, session: Session) -> Any:
        """Search the one setting of the method, which is in [0, 1]."""
        evaluate = session.evaluator()
        return bisect(evaluate, self.base(session, evaluate), self.targets)

    def base(self, session: Session, evaluate: Evaluator) -> FittedMethod:
        """Return the method before its setting is known."""
        return replace(self.method, special=session.special)


@dataclass(frozen=True, kw_only=True)
class FitNAEE(FitSingle):
    """The share of the tail for each wanted ratio, by bisection."""

    method: ClassVar[FittedMethod] = NAEE()


@dataclass(frozen=True, kw_only=True)
class FitGMLG(FitSingle):
    """One importance for each layer, then one threshold for each wanted ratio, by bisection."""

    def base(self, session: Session, evaluate: Evaluator) -> FittedMethod:
        """Calibrate one importance for all tokens of a layer."""
        alpha = Importance.normalised(session.importance().shared)
        return GMLG(alpha_text=alpha, alpha_vision=alpha, special=session.special)


@dataclass(frozen=True, kw_only=True)
class FitMCMoE(FitSingle):
    """The layers that matter least, then the share of the tail for each wanted ratio, by bisection."""

    def base(self, session: Session, evaluate: Evaluator) -> FittedMethod:
        """Choose the layers in which pairs are skipped; all, where those are not enough for the highest ratio."""
        importance, layers = session.importance().shared, [site.layer for site in session.sites]
        order = sorted(range(len(layers)), key=lambda i: importance[i])[: max(1, round(PRUNABLE * len(layers)))]
        method = MCMoE(prunable=tuple(sorted(layers[i] for i in order)), special=session.special)
        reached = evaluate(method.at(beta=1.0))["ratio"]
        return method if reached >= max(self.targets) else replace(method, prunable=())


@dataclass(frozen=True, kw_only=True)
class FitReduceK(FitSingle):
    """The number of experts for each wanted ratio, which special tokens keep in full."""

    def fitted(self, session: Session) -> Any:
        """Search k' in steps of one expert less, in one layer, for text or vision tokens.

        Raises:
            FewstepError: a ratio is out of reach.
        """
        top = float(max(site.top_k for site in session.sites))
        parts = 2 * top * len(session.sites)

        def step(keep: float) -> float:
            return top * (1 - round((1 - keep / top) * parts) / parts)

        method = bisect(session.evaluator(), ReduceK(special=session.special), self.targets, top, 0.0, step)
        for point in method.points:
            if point["ratio"] < point["target"] - SHORT:
                raise FewstepError(f"reduce-k skips at most {point['ratio']:.3f} of the pairs, not {point['target']:g}")
        return method


@dataclass(frozen=True, kw_only=True)
class FitREAP(SkipFitting):
    """The experts of each layer that contribute least."""

    remove: float = _free(0.5)
    """Share of each layer's experts."""

    def fitted(self, session: Session) -> REAP:
        """Measure every expert's saliency in one pass, then choose.

        Raises:
            ValueError: `remove` is not in [0, 1).
        """
        if not 0 <= self.remove < 1:
            raise ValueError(f"remove must be in [0, 1), found {self.remove}")
        scores = saliency(session.model, session.bar.track(session.batches, description="saliency of experts"))
        removed = tuple(
            tuple(sorted(scores[site.layer].argsort(stable=True)[: round(self.remove * site.count)].tolist()))
            for site in session.sites
        )
        return REAP(removed=removed, special=session.special, **model_facts(session.sites))
