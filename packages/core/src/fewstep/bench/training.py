"""Recipes compared: trained in turn from the same seeds, a slice each, and scored between the slices."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..errors import FewstepError
from ..train.parallel import World
from ..train.recipe import Recipe
from . import timing
from .curves import check_drawable, picture
from .record import ArmConfig, Measurement, make_rows, measurement, plain
from .rows import DENSE, Row, append
from .samples import FOLDER, write_samples
from .settings import Event, Settings
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
    watch: Callable[[Event], None] = lambda event: None,
) -> list[Row]:
    """Train `arms` (by label; the first is the baseline) from each seed, and append rows to the task's file.

    The model that they start from is measured too, as the dense arm. Ctrl-C records the seeds that are finished.

    Raises:
        FewstepError: the checkout is dirty and the settings do not allow it, a recipe cannot be scored while it
            trains, its loss explodes, or a metric is not finite.
        OSError: the results folder cannot be written; found out before anything is run.
    """
    settings.prepare()
    check_drawable()
    with timing.fixed_threads(settings.threads):
        return _TrainingBench(arms, task, task_name, settings, World(device=device), watch).run()


class _TrainingBench:
    def __init__(self, arms: Mapping[str, RecipeArm], task: TrainingTask, name: str, settings: Settings, world, watch):
        self.arms, self.task, self.name, self.settings, self.world = arms, task, name, settings, world
        self.watch, self.scorer = watch, task.scorer()
        self.model = str(getattr(next(iter(arms.values())).recipe, "teacher", ""))
        self.provenance = settings.provenance("trained", world.device, "")
        self.measurements: dict[str, list[Measurement]] = {DENSE: [], **{label: [] for label in arms}}
        self.curves: dict[str, list[list[tuple[float, float]]]] = {label: [] for label in arms}
        self.done, self.total = 0, settings.repeats * (1 + len(arms) * len(task.marks))

    def run(self) -> list[Row]:
        try:
            for repeat in range(self.settings.repeats):
                self._seed(self.settings.seed + repeat)
        except KeyboardInterrupt:
            if self.measurements[DENSE]:
                self._write()
            raise
        return self._write()

    def _seed(self, seed: int) -> None:
        runs = {
            label: TrainingRun(dataclasses.replace(arm.recipe, seed=seed), self.world)
            for label, arm in self.arms.items()
        }
        pipe = next(iter(runs.values())).job.pipe
        self.provenance = dataclasses.replace(self.provenance, dtype=timing.model_dtype(pipe))
        outcomes = {DENSE: score(self.scorer, pipe, self.model, seed)}
        self._tell(seed, DENSE, f"{self._quality(outcomes[DENSE], DENSE):.4g}")
        for number, mark in enumerate(self.task.marks):
            for label in list(runs)[:: -1 if number % 2 else 1]:  # A B B A: what drifts hits both
                run = runs[label]
                run.train(mark)
                outcomes[label] = run.score(self.scorer, self.model, seed)
                run.curve.append((run.seconds, self._quality(outcomes[label], label)))
                self._tell(seed, label, f"{run.curve[-1][1]:.4g} after {run.seconds:.0f} s", run.steps)
        scores = [value for _, value in next(iter(runs.values())).curve]
        targets = {BEST: min(scores), FINAL: scores[-1]}
        for label, outcome in outcomes.items():
            self._record(label, outcome, runs.get(label), targets, seed)

    def _record(
        self, label: str, outcome: Outcome, run: TrainingRun | None, targets: Mapping[str, float], seed: int
    ) -> None:
        if run is not None:
            reached = {name: run.reached(target) for name, target in targets.items()}
            training = {name: at for name, at in reached.items() if at is not None}
            seconds = training | {"iteration": run.seconds / run.steps} | outcome.seconds
            best = min(value for _, value in run.curve)
            counts = {f"best_{self.task.metric}": best, "iterations": run.steps, **outcome.counts}
            outcome = dataclasses.replace(outcome, seconds=seconds, counts=counts)
            self.curves[label].append(run.curve)
        self.measurements[label].append(measurement(outcome, outcome.quality, f"{self.name}, {label}, seed {seed}"))

    def _quality(self, outcome: Outcome, label: str) -> float:
        if not math.isfinite(value := outcome.quality.get(self.task.metric, math.nan)):
            raise FewstepError(f"{self.task.metric} of {label} is {value}: nothing of this run is recorded")
        return value

    def _write(self) -> list[Row]:
        seeds, settings = len(self.measurements[DENSE]), self.settings
        measurements = {label: _comparable(runs) for label, runs in self.measurements.items()}
        params = {**plain(dataclasses.asdict(self.task)), "seed": settings.seed, "repeats": seeds}
        head = {"task": self.name, "model": self.model, "params": params}
        common = {**head, "run": self.provenance}
        baselines = dict.fromkeys((BEST, "iteration"), next(iter(self.arms)))
        rows = make_rows(common, self.arms, measurements, f"{DENSE}-{self.provenance.dtype}", baselines=baselines)
        shown = {label: runs[0].samples for label, runs in measurements.items()}
        shown[DENSE] = (self._picture(), *shown[DENSE])
        write_samples(settings.results / FOLDER, self.provenance.id, head, shown)
        append(rows, file := settings.results / f"{self.name}.jsonl")
        self.watch(Event(kind="written", text=f"{len(rows)} rows added to {file}", done=self.done, total=self.total))
        return rows

    def _picture(self) -> Sample:
        metric = self.task.metric
        dense = statistics.mean(run.quality[metric] for run in self.measurements[DENSE])
        return Sample(title=f"{metric} by seconds of training", image=picture(self.curves, metric, dense))

    def _tell(self, seed: int, label: str, text: str, steps: int = 0) -> None:
        self.done += 1
        said = f"seed {seed}: {label}: {self.task.metric} {text}" + (f", {steps} iterations" if steps else "")
        self.watch(Event(kind="measured", text=said, done=self.done, total=self.total, arm=label))


def _comparable(runs: list[Measurement]) -> list[Measurement]:
    """The measurements with those times only that all seeds have: a median of some seeds would flatter."""
    shared = set.intersection(*(set(run.seconds) for run in runs))
    return [
        dataclasses.replace(run, seconds={name: value for name, value in run.seconds.items() if name in shared})
        for run in runs
    ]
