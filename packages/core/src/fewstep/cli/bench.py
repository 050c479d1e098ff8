"""``fewstep bench``: the unchanged model against methods, side by side in one run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import hub, plugins
from ..bench.record import config
from ..bench.rows import DENSE, Row
from ..bench.settings import Settings
from ..bench.tables import cell as table_cell
from ..bench.tables import compact, compare, heading
from ..cards import Card
from ..errors import FewstepError
from ..method import Method
from . import sweep
from .flags import Group, parse, peek
from .options import MethodModelOptions, chosen_method, method_group, named, quiet
from .race import bench_recipe
from .table import show_table
from .watch import watching


@dataclass(frozen=True, kw_only=True)
class BenchOptions(MethodModelOptions):
    """What is measured, and how often."""

    task: str = ""
    """A name from `fewstep list`; default: the first task of the method's own package, or the only one."""
    vs: str = ""
    """Other methods to measure in the same run, with their default settings: a,b. The unchanged model always is."""
    also: tuple[str, ...] = ()
    """More settings of the method to measure in the same run, each in quotes: "entry=18,21,28 offload"."""
    repeats: int = 3
    """Pairs of runs, each with inputs of its own."""
    seed: int = 0
    """Of the inputs of the first pair."""
    results: Path = Path("results")
    """Rows are appended to TASK.jsonl in this folder."""


def bench(words: list[str]) -> int:
    """Measure and print a table; exit code 1 when the correctness gate of an arm is red.

    A number of the method may be a list, ``--keep 0.25,0.5``: each value is an arm, of the methods of ``--vs`` too.
    """
    if words and words[0] in plugins.recipes():
        return bench_recipe(words)
    quiet()
    command = shlex.join(["fewstep", "bench", *words])
    card, words = named("bench", words, "method", plugins.methods())
    task_card = _task_card(card, peek(words, "--task"))
    swept, words = sweep.taken(card.load(), words)
    groups = [Group("bench", BenchOptions), method_group(card, words), Group(task_card.name, task_card.load(), "task")]
    description = f"{card.summary}\n\nTask {task_card.name}: {task_card.summary}."
    options, method, task = parse(f"fewstep bench {card.name}", description, words, groups)
    settings = Settings(
        repeats=options.repeats,
        seed=options.seed,
        threads=options.threads,
        results=options.results,
        command=command,
    )
    settings.prepare()
    more = [_setting(card, setting, options.model) for setting in options.also]
    measured = [chosen_method(card, options, method), *more, *_others(options.vs, options.model)]
    arms = _labelled(sweep.spread(measured, swept), options.model)
    from ..bench.run import bench as measure

    loaded = options.load()
    with watching(f"{task_card.name} on {loaded.name}") as watch:
        rows = measure(loaded, arms, task, task_card.name, settings, watch)
    show_rows(rows)
    for arm in watch.red:
        print(f"fewstep: no speed-up for {arm}: its identity setting differs from the dense model", file=sys.stderr)
    return 1 if watch.red else 0


def _task_card(method: Card, name: str | None) -> Card:
    cards = plugins.tasks()
    if name is not None:
        return plugins.find(cards, name, "task")
    package = method.target.partition(":")[0].partition(".")[0]
    own = [card for card in cards.values() if card.target.startswith((f"{package}.", f"{package}:"))]
    if not own and len(cards) != 1:
        raise FewstepError(f"--task is needed, since {method.name} brings none; tasks: {', '.join(cards) or 'none'}")
    return (own or list(cards.values()))[0]


def _setting(card: Card, setting: str, model: str) -> Method:
    words = []
    for part in setting.split():
        name, _, value = part.partition("=")
        words += [f"--{name}", *(value.split(",") if value else [])]
    return parse("--also", card.summary, words, [method_group(card, words, model)])[0]


def _others(names: str, model: str) -> list[Method]:
    cards = plugins.methods()
    wanted = [name.strip() for name in names.split(",")]
    found = [plugins.find(cards, name, "method").load() for name in wanted if name and name != DENSE]
    return [cls.from_pretrained(model) if hub.shipped(model, cls.name) else cls() for cls in found]


def _labelled(methods: Sequence[Method], model: str) -> dict[str, Method]:
    """The arms by name; where two share a name, each with its configuration."""
    names = [method.name for method in methods]
    arms: dict[str, Method] = {}
    for method in methods:
        label = (
            method.name if names.count(method.name) == 1 else f"{method.name} {compact(config(method, model))}".strip()
        )
        if label in arms:
            raise FewstepError(f"{label} is named again: two arms would measure the same")
        arms[label] = method
    return arms


def show_rows(rows: Sequence[Row]) -> None:
    """One table for each comparison: metrics down, arms across."""
    for comparison in compare(rows):
        params = compact(comparison.params)
        title = f"{comparison.task} on {comparison.model} ({comparison.setting.dtype}, {params})"
        lines = [
            (heading(metric), *(table_cell(arm, metric) for arm in comparison.arms)) for metric in comparison.metrics
        ]
        show_table(title, ("", *(arm.label for arm in comparison.arms)), lines)
