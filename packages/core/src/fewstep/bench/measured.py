"""Measurements of a package's methods in words: a short table that its wheel ships, for ``fewstep show``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from .. import plugins
from ..cards import Card
from .formatting import amount, heading
from .rows import DENSE, Row
from .summary import Line, all_lines, rank
from .tables import compare

FILE = "measured.json"
"""Beside the modules of a package."""
HEADER = ("setting", "model: task", "speed-up", "quality", "memory", "measured on")


def measured(rows: Sequence[Row]) -> dict[str, dict[str, list[list[str]]]]:
    """By package and name of the method: a line for each model and task, its best setting; trained weights first."""
    cards = {**plugins.methods(), **plugins.recipes()}
    best: dict[tuple[str, str, str, str], Line] = {}
    for line in all_lines(compare(rows)):
        one = line.comparison
        if line.arm.method in cards and line.speed:
            key = line.arm.method, one.model, one.task, one.setting.hardware
            best[key] = max(best.get(key, line), line, key=rank)
    tables: dict[str, dict[str, list[list[str]]]] = {}
    for key, line in sorted(best.items(), key=lambda item: (item[0][0], item[1].comparison.random, item[0])):
        tables.setdefault(package(cards[key[0]]), {}).setdefault(key[0], []).append(_words(line))
    return tables


def package(card: Card) -> str:
    """The importable package that a card's target lies in."""
    return card.target.partition(":")[0].partition(".")[0]


def _words(line: Line) -> list[str]:
    quality = "not told"
    if line.quality:
        quality = f"{heading(line.quality.metric)} {amount(line.quality)}" + (f", {line.beside}" if line.beside else "")
    if line.comparison.random:
        quality = "random weights: speed only"
    speed = f"{amount(line.speed)} {line.against}" if line.speed else "–"
    device = f"{line.comparison.setting.device}, {line.comparison.setting.dtype}"
    return [line.setting, f"{line.comparison.model}: {line.task}", speed, quality, line.memory, device]


def write_measured(rows: Sequence[Row], roots: Sequence[Path]) -> list[Path]:
    """Write the tables into the sources of the packages in `roots` (``packages/*/src/*``); returns the files."""
    tables, written = measured(rows), []
    for root in roots:
        if root.name in tables:
            (root / FILE).write_text(text(tables[root.name]), encoding="utf-8")
            written.append(root / FILE)
    return written


def text(table: dict[str, list[list[str]]]) -> str:
    """The file's content."""
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def shipped(card: Card) -> list[list[str]]:
    """The lines of one method that its package ships, empty where there are none; the method is not imported."""
    if card.name == DENSE:
        return []
    file = files(package(card)).joinpath(FILE)
    return json.loads(file.read_text(encoding="utf-8")).get(card.name, []) if file.is_file() else []
