"""``fewstep bench``: the unchanged model against methods, side by side in one run."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import hub, plugins
from ..bench.formatting import compact
from ..bench.record import config
from ..bench.rows import DENSE
from ..bench.settings import Event, Settings
from ..cards import Card
from ..errors import FewstepError
from ..method import Method
from . import sweep
from .bench_training import bench_recipe
from .flags import Group, assignments, parse, peek
from .options import MethodModelOptions, chosen_method, method_group, named, quiet
from .progress import following
from .table import show_rows


@dataclass(frozen=True, kw_only=True)
class BenchOptions(MethodModelOptions, Settings):
    """Task, arms and settings."""

    task: str = ""
    """A name from `fewstep list`; default: the first task of the method's own package, or the only one."""
    vs: str = ""
    """Other methods to measure in the same run, with their default settings: a,b. The unchanged model always is."""
    also: tuple[str, ...] = ()
    """More settings of the method to measure in the same run, each in quotes: "entry=18,21,28 offload"."""
    command: Annotated[str, tyro.conf.Suppress] = ""


def bench(words: list[str]) -> int:
    """Measure and print a table; exit code 1 when the correctness gate of an arm is red.

    A number of the method may be a list, ``--keep 0.25,0.5``: each value is an arm, of the methods of ``--vs`` too.

    Raises:
        FewstepError: a name or a flag is wrong, the checkout is dirty, or the measurement fails.
        OSError: the results folder cannot be written.
    """
    if words and words[0] in plugins.recipes():
        return bench_recipe(words)
    quiet(words)
    typed = shlex.join(["fewstep", "bench", *words])
    card, words = named("bench", words, "method", plugins.methods())
    # All names are looked up before anything heavy is imported.
    if set(words) & {"-h", "--help"} and not peek(words, "--task") and not _own_tasks(card):
        return _help_without_task(card, words)
    task_card = _task_card(card, peek(words, "--task"))
    others = [name.strip() for name in (peek(words, "--vs") or "").split(",")]
    other_cards = [plugins.find(plugins.methods(), name, "method") for name in others if name not in ("", DENSE)]
    _check_model(peek(words, "--model"))
    swept, words = sweep.take_sweep(card.load(), words)
    groups = [Group("bench", BenchOptions), method_group(card, words), Group(task_card.name, task_card.load(), "task")]
    description = f"{card.summary}\n\nTask {task_card.name}: {task_card.summary}."
    options, method, task = parse(f"fewstep bench {card.name}", description, words, groups)
    options = dataclasses.replace(options, command=typed)
    options.prepare()
    more = [_setting(card, setting, options.model) for setting in options.also]
    methods = [chosen_method(card, options, method), *more, *(_default(one, options.model) for one in other_cards)]
    arms = _labelled(sweep.spread(methods, swept), options.model)
    from ..bench.run import bench as measure

    red: list[str] = []
    loaded = options.load()
    with following(f"{task_card.name} on {loaded.name}") as progress:

        def watch(event: Event) -> None:
            red.extend([] if event.ok else [event.arm])
            progress.event(event)

        rows = measure(loaded, arms, task, task_card.name, options, watch)
    show_rows(rows)
    for arm in red:
        print(f"fewstep: no speed-up for {arm}: its identity setting differs from the dense model", file=sys.stderr)
    return 1 if red else 0


def _task_card(method: Card, name: str | None) -> Card:
    cards = plugins.tasks()
    if name is not None:
        return plugins.find(cards, name, "task")
    own = _own_tasks(method)
    if not own and len(cards) != 1:
        raise FewstepError(f"--task is needed, since {method.name} brings none; tasks: {', '.join(cards) or 'none'}")
    return (own or list(cards.values()))[0]


def _own_tasks(method: Card) -> list[Card]:
    """The tasks of the method's package."""
    package = method.target.partition(":")[0].partition(".")[0]
    return [card for card in plugins.tasks().values() if card.target.startswith((f"{package}.", f"{package}:"))]


def _help_without_task(card: Card, words: Sequence[str]) -> int:
    """The flags that all tasks share, and the tasks to choose from."""
    tasks = ", ".join(plugins.tasks()) or "none is installed"
    about = f"{card.summary}\n\n--task is needed: {tasks}. With --task NAME this help lists the flags of the task too."
    parse(f"fewstep bench {card.name}", about, words, [Group("bench", BenchOptions), method_group(card, list(words))])
    return 0


def _check_model(name: str | None) -> None:
    if name and "/" not in name and not Path(name).expanduser().is_dir():
        plugins.find(plugins.loaders(), name, "model, folder or hub id")


def _setting(card: Card, setting: str, model: str) -> Method:
    words = assignments(setting.split())
    return parse("--also", card.summary, words, [method_group(card, words, model)])[0]


def _default(card: Card, model: str) -> Method:
    cls = card.load()
    return cls.from_pretrained(model) if hub.shipped(model, card.name) else cls()


def _labelled(methods: Sequence[Method], model: str) -> dict[str, Method]:
    """The arms by name; where two share a name, each with its configuration."""
    names = [method.name for method in methods]
    arms: dict[str, Method] = {}
    for method in methods:
        settings = "" if names.count(method.name) == 1 else compact(config(method, model))
        label = f"{method.name} {settings}".strip()
        if label in arms:
            raise FewstepError(f"{label} is named again: two arms would measure the same")
        arms[label] = method
    return arms
