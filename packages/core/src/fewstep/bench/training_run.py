"""`TrainingRun`: a recipe under way, trained for some seconds, scored, trained on."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch

from ..contract import Loaded
from ..errors import FewstepError
from ..train.loop import Loop
from ..train.parallel import World
from ..train.recipe import Recipe
from ..train.run import place
from .task import Outcome, Task


class TrainingRun:
    """One recipe with one seed, at some point of its training."""

    def __init__(self, recipe: Recipe, world: World) -> None:
        """Build roles, data and optimisers.

        Raises:
            FewstepError: the recipe trains no pipeline, or no method runs its students.
        """
        torch.manual_seed(recipe.seed)
        self.method = recipe.method()
        self.job = recipe.build(world)
        if self.job.pipe is None:
            raise FewstepError(f"{type(recipe).__name__} trains no pipeline: it cannot be scored while it trains")
        place(recipe, self.job.objective.roles, world)
        self.loop = Loop(recipe, self.job, world)
        self.steps, self.seconds = 0, 0.0
        self.curve: list[tuple[float, float]] = []
        """Training time and quality at each scoring."""

    def train(self, until: float) -> None:
        """Train until `until` seconds were spent in steps."""
        while self.seconds < until:
            began = time.perf_counter()
            self.loop.step(self.steps)
            self.seconds += time.perf_counter() - began
            self.steps += 1

    def score(self, task: Task, name: str, seed: int) -> Outcome:
        """Run the task on the weights so far, as a user would use them."""
        pipe, method = self.job.pipe, self.method
        before, pipe.transformer = pipe.transformer, self.loop.roles.main.network
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.random.fork_rng(devices=[]))
                stack.enter_context(self.loop.ema.applied() if self.loop.ema else contextlib.nullcontext())
                stack.enter_context(self.loop.roles.main.use_adapter())
                if method is not None:
                    stack.enter_context(method.apply(pipe))
                return score(task, pipe, name, seed)
        finally:
            pipe.transformer = before

    def reached(self, target: float) -> float | None:
        """Training time of the first scoring that is as good as `target`; None where there was none."""
        return next((seconds for seconds, value in self.curve if value <= target), None)


def score(task: Task, pipe: Any, name: str, seed: int) -> Outcome:
    """Run the task on a pipeline with the inputs of `seed`."""
    return task.run(Loaded(model=pipe, name=name, weights="trained"), torch.Generator().manual_seed(seed))
