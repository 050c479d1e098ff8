"""The README's table of methods, made from the committed rows and checked against them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import plugins
from ..errors import BadFileError
from .rows import DENSE, Row
from .tables import (
    QUALITY,
    RANDOM_MARK,
    SPEEDUP,
    TELLING,
    Arm,
    Comparison,
    amount,
    cell,
    compact,
    compare,
    heading,
    load,
    quality_metric,
    speed_metric,
    table,
)

BEGIN, END = "<!-- rows:begin -->", "<!-- rows:end -->"
_NO_SPEEDUP = float("-inf")


def readme_table(rows: Sequence[Row]) -> str:
    """One line per method, model and task: where its default settings gain most, with what that costs in quality.

    Other settings, the best in quality first, and rows on random weights are used only where there are no better ones.
    Baselines and ablations, as their cards say, are left to the READMEs of their packages; so are kernels, whose rows
    are no method's.
    """
    aside = {name for name, card in {**plugins.methods(), **plugins.recipes()}.items() if card.role != "method"}
    aside |= {row.method for row in rows if row.task in plugins.kernels()}
    best: dict[tuple[str, str, str], tuple[Comparison, Arm]] = {}
    for comparison in compare(rows):
        for arm in comparison.arms:
            key = (arm.method, comparison.model, comparison.task)
            if arm.method not in (DENSE, *aside) and (key not in best or _rank(comparison, arm) > _rank(*best[key])):
                best[key] = (comparison, arm)
    lines = [line for key in sorted(best) if set((line := _line(*best[key]))[3:5]) != {"–"}]
    header = ["method", "model", "task", "speed-up", "quality", "KV memory"]
    if all(line[-1] == "–" for line in lines):
        header, lines = header[:-1], [line[:-1] for line in lines]
    return table(header, lines, words=3)


def _rank(comparison: Comparison, arm: Arm) -> tuple[bool, bool, bool, float, float]:
    metric, quality = speed_metric(comparison) or "", quality_metric(comparison)
    default, ratio = not any(row.config for row in arm.rows.values()), arm.rows.get(metric)
    telling = metric.removesuffix(SPEEDUP) in TELLING
    found = arm.rows.get(quality) if quality and not default else None
    worth = (found.value if QUALITY[quality] else -found.value) if found and quality else 0.0
    return not comparison.random, default, telling, worth, ratio.value if ratio else _NO_SPEEDUP


def _line(comparison: Comparison, arm: Arm) -> list[str]:
    speed = speed_metric(comparison)
    # The ratio of the first token is what most tasks have; any other is named, since it is another wait.
    named = f" ({heading(speed)})" if speed and speed in arm.rows and speed != "ttft_speedup" else ""
    task = f"{comparison.task} {compact(comparison.params)}".strip()
    return [
        arm.label,
        comparison.model,
        task,
        cell(arm, speed) + named if speed else "–",
        RANDOM_MARK if comparison.random else quality_cost(comparison, arm),
        _kv_ratio(arm),
    ]


def quality_cost(comparison: Comparison, arm: Arm) -> str:
    """``accuracy 0.92 (dense 0.94)``; without the bracket where the metric is itself a comparison with dense."""
    metric = quality_metric(comparison)
    if metric is None or metric not in arm.rows:
        return "–"
    dense = arm.dense.get(metric)
    against = f" (dense {amount(dense)})" if dense else ""
    return f"{heading(metric)} {amount(arm.rows[metric])}{against}"


def _kv_ratio(arm: Arm) -> str:
    own, dense = arm.rows.get("kv_bytes"), arm.dense.get("kv_bytes")
    return f"{own.value / dense.value:.2f}x" if own and dense and dense.value else "–"


def _split(readme: Path) -> tuple[str, str, str]:
    """The text before, between and after the markers, markers left out."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    between, end, after = rest.partition(END)
    if not begin or not end:
        raise BadFileError(f"{readme} has no place for the table: it needs the lines {BEGIN} and {END}")
    return before, between, after


def check_readme(readme: Path, source: Path) -> bool:
    """Whether the table in `readme` is the one that the rows in `source` give.

    Raises:
        FewstepError: the markers are missing or there are no rows.
    """
    return _split(readme)[1].strip() == readme_table(load(source))


def update_readme(readme: Path, source: Path) -> None:
    """Put the table of the rows in `source` between the markers; a README that is up to date is not written.

    Raises:
        FewstepError: the markers are missing or there are no rows.
        OSError: the file cannot be written.
    """
    before, between, after = _split(readme)
    wanted = readme_table(load(source))
    if between.strip() != wanted:
        readme.write_text(f"{before}{BEGIN}\n{wanted}\n{END}{after}", encoding="utf-8")
