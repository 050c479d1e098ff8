"""The README's table of methods, made from the committed rows and checked against them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import BadFileError
from .formatting import QUALITY, SPEEDUP, amount, heading, markdown_table
from .pareto import IDENTITY
from .rows import DENSE, Row
from .tables import (
    DIRTY_MARK,
    DIRTY_REMARK,
    TELLING,
    Arm,
    Comparison,
    cell,
    compare,
    load,
    quality_metric,
    speed_metric,
)

BEGIN, END = "<!-- rows:begin -->", "<!-- rows:end -->"
HEADER = ("method", "model and task", "speed-up", "quality beside dense", "memory")
KEPT = 0.98
"""Share of the dense quality that a setting must keep to be preferred."""


def readme_table(rows: Sequence[Row]) -> str:
    """One line per method, and a table per kind of hardware.

    A method is shown at its default settings where these were measured, else at the setting that gains most of those
    that keep the quality; rows of clean checkouts are preferred. Random weights, kernels, baselines and ablations are
    left to the READMEs of their packages, and so is what was measured on the data that settings were chosen on
    (``split`` tuning).
    """
    cards = {**plugins.methods(), **plugins.recipes()}
    aside = {DENSE, *(name for name, card in cards.items() if card.role != "method")}
    best: dict[str, dict[str, tuple[Comparison, Arm]]] = {}
    for comparison in compare([row for row in rows if row.task not in plugins.kernels()]):
        if comparison.random or comparison.params.get("split") == "tuning":
            continue
        for arm in comparison.arms:
            if arm.method in aside or not {speed_metric(comparison), quality_metric(comparison)} & set(arm.rows):
                continue
            of_hardware = best.setdefault(comparison.setting.hardware, {})
            one = of_hardware.get(arm.method)
            if one is None or _rank(comparison, arm) > _rank(*one):
                of_hardware[arm.method] = comparison, arm
    parts = []
    for hardware, methods in best.items():
        parts += [f"**{hardware}**"] if len(best) > 1 else []
        parts.append(markdown_table(HEADER, [_line(*methods[name]) for name in sorted(methods)], words=2))
    dirty = any(arm.run.dirty for methods in best.values() for _, arm in methods.values())
    return "\n\n".join([*parts, *([DIRTY_REMARK] if dirty else [])])


def _rank(comparison: Comparison, arm: Arm) -> tuple[bool, bool, bool, bool, bool, float]:
    metric, default = speed_metric(comparison) or "", not arm.first.config
    telling, ratio = metric.removesuffix(SPEEDUP) in TELLING, arm.rows.get(metric)
    repeated, surely = (True, ratio.spread[0]) if ratio and ratio.spread else (False, ratio.value if ratio else 0.0)
    return default, default or keeps_quality(comparison, arm), not arm.run.dirty, telling, repeated, surely


def keeps_quality(comparison: Comparison, arm: Arm) -> bool:
    """True where the arm keeps the share `KEPT` of the dense quality; False too where one of the two is unknown."""
    metric = quality_metric(comparison) or ""
    own, dense = arm.rows.get(metric), arm.dense.get(metric)
    reference = dense.value if dense else IDENTITY.get(metric)
    if own is None or reference is None:
        return False
    return own.value >= KEPT * reference if QUALITY[metric] else own.value * KEPT <= reference


def _line(comparison: Comparison, arm: Arm) -> list[str]:
    speed, tasks, length = speed_metric(comparison), plugins.tasks(), comparison.params.get("length")
    task = tasks[comparison.task].summary.partition(":")[0] if comparison.task in tasks else comparison.task
    method = ", ".join([arm.method, *(words(name, value) for name, value in arm.first.config.items())])
    return [
        f"{method} {DIRTY_MARK}" if arm.run.dirty else method,
        f"{comparison.model}: {task}" + (f", {length:,} tokens" if isinstance(length, int) else ""),
        f"{cell(arm, speed)} ({heading(speed.removesuffix(SPEEDUP))})" if speed and speed in arm.rows else "–",
        quality_cost(comparison, arm),
        memory(arm),
    ]


def words(name: str, value: Any) -> str:
    """A field in words: ``keep floor 0``, ``entry 18/21/28``, ``offload``, ``no offload``."""
    name = name.replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {'/'.join(map(str, value)) if isinstance(value, list) else value}"


def quality_cost(comparison: Comparison, arm: Arm) -> str:
    """``accuracy 0.92 (dense 0.94)``; without the bracket where the metric is itself a comparison with dense."""
    metric = quality_metric(comparison)
    if metric is None or metric not in arm.rows:
        return "–"
    dense = arm.dense.get(metric)
    return f"{heading(metric)} {amount(arm.rows[metric])}" + (f" (dense {amount(dense)})" if dense else "")


def memory(arm: Arm) -> str:
    """``KV memory 0.58x``: of the cache where it was counted, else the peak of the process or the GPU."""
    for metric in ("kv_bytes", "peak_rss_bytes", "peak_cuda_bytes"):
        own, dense = arm.rows.get(metric), arm.dense.get(metric)
        if own and dense and dense.value:
            return f"{heading(metric)} {own.value / dense.value:.2f}x"
    return "–"


def check_readme(readme: Path, source: Path) -> bool:
    """True where the table in `readme` is the one that the rows in `source` give.

    Raises:
        FewstepError: the markers are missing or there are no rows.
    """
    return _updated(readme, source) == readme.read_text(encoding="utf-8")


def update_readme(readme: Path, source: Path) -> None:
    """Put the table of the rows in `source` between the markers.

    Raises:
        FewstepError: the markers are missing or there are no rows.
        OSError: the file cannot be written.
    """
    readme.write_text(_updated(readme, source), encoding="utf-8")


def _updated(readme: Path, source: Path) -> str:
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadFileError(f"{readme} has no place for the table: it needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{readme_table(load(source))}\n{END}{after}"
