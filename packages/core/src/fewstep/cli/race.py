"""``fewstep bench RECIPE``: training raced against training."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import plugins
from ..bench.settings import Settings, available_cores
from ..bench.tables import compact
from ..cards import Card
from ..errors import FewstepError
from .flags import Group, parse, peek
from .options import chosen_device, quiet
from .train import recipe_group
from .watch import watching

DEFAULT_TASK = "time-to-quality"


@dataclass(frozen=True, kw_only=True)
class RaceOptions:
    """What is trained side by side, and how often."""

    settings: tuple[str, ...] = ()
    """Of the recipe: lam=0.2 student.lr=1e-4."""
    vs: tuple[str, ...] = ()
    """Recipes to train in the same run, each in quotes with its settings: "dmd2-digits" "sgmd-digits lam=0". The first
    is the baseline."""
    task: str = DEFAULT_TASK
    """A task for training, from `fewstep list`."""
    repeats: int = 3
    """Seeds; each trains every recipe once."""
    seed: int = 0
    """The first of them."""
    device: str = "auto"
    """cpu or cuda; auto takes the GPU where there is one."""
    threads: int = field(default_factory=available_cores)
    """CPU threads of torch."""
    results: Path = Path("results")
    """Rows are appended to TASK.jsonl in this folder."""


def bench_recipe(words: list[str]) -> int:
    """Train recipes in turn and print a table of their times and quality."""
    quiet()
    command = shlex.join(["fewstep", "bench", *words])
    card = plugins.recipes()[words[0]]
    task_card = plugins.find(plugins.tasks(), peek(words, "--task") or DEFAULT_TASK, "task")
    groups = [Group("bench", RaceOptions), Group(task_card.name, task_card.load(), "task")]
    description = f"{card.summary}\n\nTask {task_card.name}: {task_card.summary}."
    options, task = parse(f"fewstep bench {card.name}", description, words[1:], groups)
    import torch

    from ..bench.record import Named
    from ..race.run import Entrant, race
    from ..race.task import Race
    from .bench import show_rows

    if not isinstance(task, Race):
        raise FewstepError(f"{task_card.name} measures methods, not training; for recipes there is {DEFAULT_TASK}")
    entrants: dict[str, Entrant] = {}
    for setting in (*options.vs, shlex.join([card.name, *options.settings])):
        one, recipe = _recipe(setting)
        config = _config(one, recipe)
        label = f"{one.name} {compact(config)}".strip()
        if label in entrants:
            raise FewstepError(f"{label} is named again: two arms would train the same")
        entrants[label] = Entrant(recipe, Named(one.name, config))
    settings = Settings(
        repeats=options.repeats, seed=options.seed, threads=options.threads, results=options.results, command=command
    )
    with watching(f"{task_card.name}: {', '.join(entrants)}") as watch:
        rows = race(entrants, task, task_card.name, settings, torch.device(chosen_device(options.device)), watch)
    show_rows(rows)
    return 0


def _recipe(setting: str) -> tuple[Card, Any]:
    """A recipe from ``"sgmd-digits lam=0 student.lr=1e-4"``."""
    name, *parts = shlex.split(setting)
    card, flags = plugins.find(plugins.recipes(), name, "recipe"), []
    for part in parts:
        key, _, value = part.partition("=")
        flags += [f"--{key}", *(value.split(",") if value else [])]
    return card, parse(f"settings of {name}", card.summary, flags, [recipe_group(card)])[0]


def _config(card: Card, recipe: Any) -> dict[str, Any]:
    """The fields of `recipe` that differ from those of its card."""
    from ..bench.record import plain
    from ..train.recipe import dotted

    usual = parse(card.name, card.summary, [], [recipe_group(card)])[0]
    mine, theirs = (dotted(plain(dataclasses.asdict(one))) for one in (recipe, usual))
    return {name: value for name, value in mine.items() if value != theirs[name]}
