"""Recipes compared: trained in turn from the same seeds, a slice each, and scored between the slices."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import FewstepError
from ..train.parallel import World
from ..train.recipe import Recipe
from . import timing
from .curves import picture
from .plots import check_matplotlib
from .record import ArmConfig, Measurement, measurement
from .rows import DENSE, Row
from .session import Session, Watch
from .settings import Settings
from .task import Outcome, Sample, TrainingTask
from .training_run import TrainingRun, score

BEST, FINAL = "time_to_quality", "time_to_final"
"""Seconds of training until the best, and until the last, quality of the baseline: one that trains for too long gets
worse again, and its last quality is then reached by anything that has begun."""


@dataclass(frozen=True)
class RecipeArm(ArmConfig):
    """A recipe with its name and configuration."""

    recipe: Recipe


def bench_training(
    arms: Mapping[str, RecipeArm],
    task: TrainingTask,
    task_name: str,
    settings: Settings,
    device: torch.device,
    watch: Watch = lambda event: None,
) -> list[Row]:
    """Train `arms` (by label; the first is the baseline) from each seed, and append rows to the task's file.

    The model that they start from is measured too, as the dense arm. Ctrl-C records the seeds that are finished.

    Raises:
        FewstepError: the checkout is dirty and the settings do not allow it, a recipe cannot be scored while it
            trains, its loss explodes, or a metric is not finite.
        OSError: the results folder cannot be written; found out before anything is run.
    """
    settings.prepare()
    check_matplotlib()  # before hours of training
    with timing.fixed_threads(settings.threads):
        return _TrainingSession(arms, task, task_name, settings, World(device=device), watch).run()


class _TrainingSession(Session):
    def __init__(self, arms: Mapping[str, RecipeArm], task: TrainingTask, name: str, settings: Settings, world, watch):
        model = str(getattr(next(iter(arms.values())).recipe, "teacher", ""))
        super().__init__(arms, task, (name, model), settings, settings.provenance("trained", world.device, ""), watch)
        self.recipes, self.world, self.scorer = {label: arm.recipe for label, arm in arms.items()}, world, task.scorer()
        self.curves: dict[str, list[list[tuple[float, float]]]] = {label: [] for label in arms}
        self.total = settings.repeats * (1 + len(arms) * len(task.marks))

    def repeat(self, repeat: int) -> None:
        seed = self.settings.seed + repeat
        runs = {
            label: TrainingRun(dataclasses.replace(recipe, seed=seed), self.world)
            for label, recipe in self.recipes.items()
        }
        pipe = next(iter(runs.values())).job.pipe
        self.provenance = dataclasses.replace(self.provenance, dtype=timing.model_dtype(pipe))
        self.dense = f"{DENSE}-{self.provenance.dtype}"
        outcomes = {DENSE: score(self.scorer, pipe, self.model, seed)}
        self._scored(seed, DENSE, f"{self._quality(outcomes[DENSE], DENSE):.4g}")
        for number, mark in enumerate(self.task.marks):
            for label in list(runs)[:: -1 if number % 2 else 1]:  # A B B A: what drifts hits both
                run = runs[label]
                run.train(mark)
                outcomes[label] = run.score(self.scorer, self.model, seed)
                run.curve.append((run.seconds, self._quality(outcomes[label], label)))
                said = f"{run.curve[-1][1]:.4g} after {run.seconds:.0f} s, {run.steps} iterations"
                self._scored(seed, label, said)
        scores = [value for _, value in next(iter(runs.values())).curve]
        targets = {BEST: min(scores), FINAL: scores[-1]}
        for label, outcome in outcomes.items():
            with_training = self._with_training(outcome, run, targets) if (run := runs.get(label)) else outcome
            where = f"{self.task_name}, {label}, seed {seed}"
            self.measurements[label].append(measurement(with_training, outcome.quality, where))
        for label, run in runs.items():
            self.curves[label].append(run.curve)

    def _with_training(self, outcome: Outcome, run: TrainingRun, targets: Mapping[str, float]) -> Outcome:
        """The outcome with the times of the training and its best quality."""
        reached = {name: run.reached(target) for name, target in targets.items()}
        training = {name: at for name, at in reached.items() if at is not None}
        best = min(value for _, value in run.curve)
        return dataclasses.replace(
            outcome,
            seconds=training | {"iteration": run.seconds / run.steps} | outcome.seconds,
            counts={f"best_{self.task.metric}": best, "iterations": run.steps, **outcome.counts},
        )

    def _quality(self, outcome: Outcome, label: str) -> float:
        if not math.isfinite(value := outcome.quality.get(self.task.metric, math.nan)):
            raise FewstepError(f"{self.task.metric} of {label} is {value}: nothing of this run is recorded")
        return value

    def _scored(self, seed: int, label: str, text: str) -> None:
        self.done += 1
        self.tell("measured", f"seed {seed}: {label}: {self.task.metric} {text}", arm=label)

    def finished(self) -> dict[str, list[Measurement]]:
        return {label: _comparable(runs) for label, runs in self.measurements.items() if runs}

    def ratios(self) -> dict[str, Any]:
        return {"baselines": dict.fromkeys((BEST, "iteration"), next(iter(self.arms)))}

    def samples(self, label: str, runs: Sequence[Measurement]) -> Sequence[Sample]:
        if label != DENSE:
            return runs[0].samples
        metric = self.task.metric
        image = picture(self.curves, metric, statistics.mean(run.quality[metric] for run in runs))
        return Sample(title=f"{metric} by seconds of training", image=image), *runs[0].samples


def _comparable(runs: list[Measurement]) -> list[Measurement]:
    """The measurements with those times only that all seeds have: a median of some seeds would flatter."""
    shared = set.intersection(*(set(run.seconds) for run in runs))
    return [
        dataclasses.replace(run, seconds={name: value for name, value in run.seconds.items() if name in shared})
        for run in runs
    ]
