"""`fewstep report`: committed rows as Markdown, figures and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import formatting, pareto, scaling, shares, tables
from .plots import save
from .rows import Row
from .samples import FOLDER
from .sheets import page
from .tables import Comparison, compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
APART = frozenset({"plan", "soak"})
"""Tasks whose rows compare no arms: predictions, which `fewstep plan --check` shows, and counts of faults."""


def write_report(source: Path, html: Path | None, *, figures: Path | None) -> str:
    """The Markdown of all rows in `source`; also writes the page to `html` and PNG and SVG files into `figures`.

    Raises:
        FewstepError: there are no rows, or matplotlib is missing and figures are wanted.
        BadFileError: a samples file is damaged.
        OSError: an output cannot be written.
    """
    rows = [row for row in tables.load(source) if row.task not in APART]
    if figures is not None:
        for names, figure in draw_figures(compare(rows)):
            save(figure, figures, *names)
    if html is not None:
        text = page(rows, (source if source.is_dir() else source.parent) / FOLDER)
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(text, encoding="utf-8")
    return markdown(rows)


def draw_figures(comparisons: Sequence[Comparison]) -> Iterator[tuple[tuple[str, ...], Figure]]:
    """The names and figures of each task and model: Pareto, skipped shares, context length.

    Of several comparisons the one with the most points, or lengths, is drawn; the report page has all of them.

    Raises:
        FewstepError: matplotlib is not installed.
    """
    for names, group in _grouped(comparisons, lambda one: one.names).items():
        if figure := pareto.draw(max(group, key=lambda one: len(pareto.points(one)))):
            yield names, figure
        if drawn := [figure for figure in map(shares.draw, group) if figure]:
            yield (*names, "skipped"), drawn[-1]
        if series := scaling.length_series(group):
            yield (*names, "by-length"), scaling.draw(max(series, key=lambda one: len(one.comparisons)))


def _grouped(items: Sequence[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def markdown(rows: Sequence[Row]) -> str:
    """Every comparison as a Markdown section: table, remarks, conditions and the commands that repeat it."""
    return "\n\n".join(map(_section, compare(rows))) + "\n"


def _section(comparison: Comparison) -> str:
    header = ["arm", *map(formatting.column, comparison.metrics)]
    body = [[arm.marked, *(tables.cell(arm, name) for name in comparison.metrics)] for arm in comparison.arms]
    parts = [
        f"## {comparison.task}: {comparison.model} ({comparison.machine})",
        formatting.compact(comparison.params),
        formatting.markdown_table(header, body),
        *tables.remarks(comparison),
    ]
    for run, rows in tables.runs(comparison).items():
        parts += [tables.conditions(run, rows), f"```\n{run.command}\n```"]
    return "\n\n".join(filter(None, parts))
