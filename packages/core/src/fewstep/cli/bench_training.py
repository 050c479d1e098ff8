"""``fewstep bench RECIPE``: recipes compared, trained side by side."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from .. import plugins
from ..bench.formatting import compact
from ..bench.record import plain
from ..bench.settings import Settings
from ..bench.task import TrainingTask
from ..cards import Card
from ..errors import FewstepError
from .flags import Group, assignments, parse, peek
from .options import chosen_device, quiet
from .progress import following
from .table import show_rows
from .train import recipe_group

DEFAULT_TASK = "time-to-quality"


@dataclass(frozen=True, kw_only=True)
class TrainingBenchOptions(Settings):
    """Recipes that are trained side by side, and settings."""

    settings: tuple[str, ...] = ()
    """Settings of the recipe: lam=0.2 student.lr=1e-4."""
    vs: tuple[str, ...] = ()
    """Recipes to train in the same run, each in quotes with its settings: "dmd2-digits" "sgmd-digits lam=0". The first
    is the baseline."""
    task: str = DEFAULT_TASK
    """A task for training, from `fewstep list`."""
    device: str = "auto"
    """cpu or cuda; auto takes the GPU where there is one."""
    command: Annotated[str, tyro.conf.Suppress] = ""


def bench_recipe(words: list[str]) -> int:
    """Train recipes in turn and print a table of their times and quality.

    Raises:
        FewstepError: a name or a flag is wrong, the checkout is dirty, or the measurement fails.
        OSError: the results folder cannot be written.
    """
    quiet(words)
    card = plugins.recipes()[words[0]]
    # All names are looked up before anything heavy is imported.
    task_card = plugins.find(plugins.tasks(), peek(words, "--task") or DEFAULT_TASK, "task")
    after = words[words.index("--vs") + 1 :] if "--vs" in words else []
    for setting in itertools.takewhile(lambda word: not word.startswith("--"), after):
        plugins.find(plugins.recipes(), setting.partition(" ")[0], "recipe")
    groups = [Group("bench", TrainingBenchOptions), Group(task_card.name, task_card.load(), "task")]
    description = f"{card.summary}\n\nTask {task_card.name}: {task_card.summary}."
    options, task = parse(f"fewstep bench {card.name}", description, words[1:], groups)
    if not isinstance(task, TrainingTask):
        raise FewstepError(f"{task_card.name} measures methods, not training; for recipes there is {DEFAULT_TASK}")
    options = dataclasses.replace(options, command=shlex.join(["fewstep", "bench", *words]))
    import torch

    from ..bench.training import RecipeArm, bench_training

    arms: dict[str, RecipeArm] = {}
    for setting in (*options.vs, shlex.join([card.name, *options.settings])):
        one, recipe = _recipe(setting)
        config = _config(one, recipe)
        label = f"{one.name} {compact(config)}".strip()
        if label in arms:
            raise FewstepError(f"{label} is named again: two arms would train the same")
        arms[label] = RecipeArm(one.name, config, recipe)
    device = torch.device(chosen_device(options.device))
    with following(f"{task_card.name}: {', '.join(arms)}") as progress:
        rows = bench_training(arms, task, task_card.name, options, device, progress.event)
    show_rows(rows)
    return 0


def _recipe(setting: str) -> tuple[Card, Any]:
    """A recipe from ``"sgmd-digits lam=0 student.lr=1e-4"``."""
    name, *parts = shlex.split(setting)
    card = plugins.find(plugins.recipes(), name, "recipe")
    return card, parse(f"settings of {name}", card.summary, assignments(parts), [recipe_group(card)])[0]


def _config(card: Card, recipe: Any) -> dict[str, Any]:
    """The fields of `recipe` that differ from those of its card."""
    from ..train.recipe import dotted

    usual = parse(card.name, card.summary, [], [recipe_group(card)])[0]
    mine, theirs = (dotted(plain(dataclasses.asdict(one))) for one in (recipe, usual))
    return {name: value for name, value in mine.items() if value != theirs[name]}
