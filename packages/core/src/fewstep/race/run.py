"""Training raced: recipes trained in turn, a slice each, and scored between the slices as users would use them."""

from __future__ import annotations

import dataclasses
import math
import statistics
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..bench import timing
from ..bench.record import Measured, Named, make_rows, measured, origin, plain, write_samples
from ..bench.rows import DENSE, Row, append
from ..bench.settings import Event, Settings
from ..bench.task import Outcome, Sample
from ..errors import FewstepError
from ..train.parallel import World
from ..train.recipe import Recipe
from .curves import check_drawable, picture
from .task import Race
from .trainee import Trainee, score

BEST, FINAL = "time_to_quality", "time_to_final"
"""Seconds of training until the best, and until the last, quality of the baseline: one that trains for too long gets
worse again, and its last quality is then reached by anything that has begun."""


@dataclass(frozen=True)
class Entrant:
    """A recipe in a race."""

    recipe: Recipe
    named: Named


def race(
    entrants: Mapping[str, Entrant],
    task: Race,
    task_name: str,
    settings: Settings,
    device: torch.device,
    watch: Callable[[Event], None] = lambda event: None,
) -> list[Row]:
    """Train `entrants` (by label; the first is the baseline) from each seed, and append rows to the task's file.

    The model that they start from is measured too, as the dense arm. Ctrl-C records the seeds that are finished.

    Raises:
        FewstepError: a recipe cannot be raced, its loss explodes, or a figure is not finite.
        OSError: the results folder cannot be written; found out before anything is run.
    """
    settings.prepare()
    check_drawable()
    with timing.fixed_threads(settings.threads):
        return _Race(entrants, task, task_name, settings, World(device=device), watch).run()


class _Race:
    def __init__(self, entrants: Mapping[str, Entrant], task: Race, name: str, settings: Settings, world: World, watch):
        self.entrants, self.task, self.name, self.settings, self.world = entrants, task, name, settings, world
        self.watch, self.run_id, self.scorer = watch, uuid.uuid4().hex[:12], task.scorer()
        self.model = str(getattr(next(iter(entrants.values())).recipe, "teacher", ""))
        self.found: dict[str, list[Measured]] = {DENSE: [], **{label: [] for label in entrants}}
        self.curves: dict[str, list[list[tuple[float, float]]]] = {label: [] for label in entrants}
        self.dtype, self.done = "", 0
        self.total = settings.repeats * (1 + len(entrants) * len(task.marks))

    def run(self) -> list[Row]:
        try:
            for repeat in range(self.settings.repeats):
                self._seed(self.settings.seed + repeat)
        except KeyboardInterrupt:
            if self.found[DENSE]:
                self._write()
            raise
        return self._write()

    def _seed(self, seed: int) -> None:
        trainees = {
            label: Trainee(dataclasses.replace(entrant.recipe, seed=seed), self.world)
            for label, entrant in self.entrants.items()
        }
        pipe = next(iter(trainees.values())).job.pipe
        self.dtype = timing.model_dtype(pipe)
        outcomes = {DENSE: score(self.scorer, pipe, self.model, seed)}
        self._tell(seed, DENSE, f"{self._quality(outcomes[DENSE], DENSE):.4g}")
        for number, mark in enumerate(self.task.marks):
            for label in list(trainees)[:: -1 if number % 2 else 1]:  # A B B A: what drifts hits both
                trainee = trainees[label]
                trainee.train(mark)
                outcomes[label] = trainee.score(self.scorer, self.model, seed)
                trainee.curve.append((trainee.seconds, self._quality(outcomes[label], label)))
                self._tell(seed, label, f"{trainee.curve[-1][1]:.4g} after {trainee.seconds:.0f} s", trainee.steps)
        scores = [value for _, value in next(iter(trainees.values())).curve]
        targets = {BEST: min(scores), FINAL: scores[-1]}
        for label, outcome in outcomes.items():
            self._record(label, outcome, trainees.get(label), targets, seed)

    def _record(
        self, label: str, outcome: Outcome, trainee: Trainee | None, targets: Mapping[str, float], seed: int
    ) -> None:
        seconds, counts = outcome.seconds, outcome.counts
        if trainee is not None:
            reached = {name: trainee.reached(target) for name, target in targets.items()}
            training = {name: at for name, at in reached.items() if at is not None}
            seconds = training | {"iteration": trainee.seconds / trainee.steps} | seconds
            best = min(value for _, value in trainee.curve)
            counts = {f"best_{self.task.metric}": best, "iterations": trainee.steps, **counts}
            self.curves[label].append(trainee.curve)
        outcome = dataclasses.replace(outcome, seconds=seconds, counts=counts)
        self.found[label].append(measured(outcome, outcome.quality, None, f"{self.name}, {label}, seed {seed}"))

    def _quality(self, outcome: Outcome, label: str) -> float:
        if not math.isfinite(value := outcome.quality.get(self.task.metric, math.nan)):
            raise FewstepError(f"{self.task.metric} of {label} is {value}: nothing of this run is recorded")
        return value

    def _write(self) -> list[Row]:
        seeds, settings = len(self.found[DENSE]), self.settings
        for label, runs in self.found.items():
            shared = set.intersection(*(set(run.seconds) for run in runs))  # a median of some seeds would flatter
            self.found[label] = [dataclasses.replace(run, seconds=_only(run.seconds, shared)) for run in runs]
        params = {**plain(dataclasses.asdict(self.task)), "seed": settings.seed, "repeats": seeds}
        head = {"task": self.name, "model": self.model, "params": params}
        about = origin(settings, self.run_id, "trained", self.world.device, self.dtype)
        arms = {label: entrant.named for label, entrant in self.entrants.items()}
        first = next(iter(arms))
        against = dict.fromkeys((BEST, "iteration"), first)
        rows = make_rows({**head, **about}, arms, self.found, f"{DENSE}-{self.dtype}", against=against)
        shown = {label: runs[0].samples for label, runs in self.found.items()}
        shown[DENSE] = (self._picture(), *shown[DENSE])
        write_samples(settings.results / "samples", self.run_id, head, shown)
        append(rows, file := settings.results / f"{self.name}.jsonl")
        self.watch(Event(kind="written", text=f"{len(rows)} rows added to {file}", done=self.done, total=self.total))
        return rows

    def _picture(self) -> Sample:
        metric = self.task.metric
        dense = statistics.mean(run.quality[metric] for run in self.found[DENSE])
        return Sample(title=f"{metric} by seconds of training", image=picture(self.curves, metric, dense))

    def _tell(self, seed: int, label: str, text: str, steps: int = 0) -> None:
        self.done += 1
        said = f"seed {seed}: {label}: {self.task.metric} {text}" + (f", {steps} iterations" if steps else "")
        self.watch(Event(kind="measured", text=said, done=self.done, total=self.total, arm=label))


def _only(seconds: dict[str, float], names: set[str]) -> dict[str, float]:
    return {name: value for name, value in seconds.items() if name in names}
