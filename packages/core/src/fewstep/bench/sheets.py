"""The report's page: rows -> sections of sheets, one sheet a comparison -> HTML."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from .. import plugins
from . import charts, formatting, scaling, summary, tables
from .homes import KERNELS, home
from .homes import summary as home_summary
from .rows import DENSE, Row
from .samples import read_samples
from .tables import Comparison, compare

FACETS = ("method", "model", "task", "device", "dtype")
"""Filters of the page."""


def page(rows: Sequence[Row], samples: Path) -> str:
    """One self-contained HTML page; `samples` is the folder of samples and may not exist.

    Raises:
        BadFileError: a samples file is damaged.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    comparisons = compare(rows)
    best = summary.best_lines(comparisons)
    leading = {id(line.comparison) for line in best}
    sheets = [_sheet(number, one, samples, id(one) in leading) for number, one in enumerate(comparisons)]
    for series in scaling.length_series(comparisons):
        sheets[comparisons.index(series.first)]["charts"] += charts.scaling_charts(series)
    loader = PackageLoader("fewstep.bench", "page")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"ident": id, "judged": _judged}
    folder = files("fewstep.bench").joinpath("page")
    return environment.get_template("page.html").render(
        css=folder.joinpath("page.css").read_text(encoding="utf-8"),
        scripts=[folder.joinpath(name).read_text(encoding="utf-8") for name in ("charts.js", "page.js")],
        sections=_sections(sheets),
        best=best,
        lines=sorted(summary.all_lines(comparisons), key=lambda line: line.arm.method),
        facets={name: _values(sheets, name) for name in FACETS},
        sheet_of={id(one): number for number, one in enumerate(comparisons)},
        head=_head([row for row in rows if not row.superseded]),
        margin=summary.MARGIN,
        dense=DENSE,
        kernels=KERNELS,
        formatting=formatting,
        tables=tables,
    )


def _sheet(number: int, comparison: Comparison, samples: Path, leading: bool) -> dict[str, Any]:
    runs = tables.runs(comparison)
    pareto = charts.pareto_chart(comparison)
    return {
        "number": number,
        "home": home(comparison),
        "comparison": comparison,
        "leading": leading,
        "best": _fastest(comparison),
        "charts": [*charts.share_charts(comparison), *([pareto] if pareto else [])],
        "remarks": tables.remarks(comparison),
        "runs": runs,
        "grids": read_samples(samples, [run.id for run in runs], comparison.task, comparison.model),
        "facets": {
            "method": [arm.method for arm in comparison.arms if arm.method != DENSE],
            "model": [comparison.model],
            "task": [comparison.task],
            "device": [comparison.setting.device],
            "dtype": [comparison.setting.dtype],
        },
    }


def _judged(comparison: Comparison, arm: tables.Arm, row: Row) -> str:
    """``gain`` of a speed-up only where quality was not seen to fall, ``loss`` of every slow-down."""
    said = formatting.verdict(row)
    return "" if said == "gain" and summary.Line(comparison, arm).state == "lost" else said


def _fastest(comparison: Comparison) -> summary.Line | None:
    """The fastest method of a sheet among those that keep the quality, where there is one; baselines come last."""
    aside = summary.aside()
    lines = [summary.Line(comparison, arm) for arm in comparison.arms if arm.method != DENSE]
    timed = [line for line in lines if line.speed]
    rank = [(line.arm.method not in aside, line.kept, line.speed.value if line.speed else 0.0) for line in timed]
    return timed[rank.index(max(rank))] if timed else None


def _sections(sheets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The packages by name, kernels last; in each the sheets of the summary, and the rest, random weights last."""
    made = []
    for name in sorted({sheet["home"] for sheet in sheets}, key=lambda name: (name == KERNELS, name)):
        own = [sheet for sheet in sheets if sheet["home"] == name]
        rest = [sheet for sheet in own if not sheet["leading"]]
        rest.sort(key=lambda sheet: (sheet["comparison"].random, sheet["comparison"].task))
        if name != KERNELS and len(rest) == len(own):
            rest[0]["leading"] = True
        leading = [sheet for sheet in own if sheet["leading"]]
        rest = [sheet for sheet in rest if not sheet["leading"]]
        made.append({"name": name, "summary": home_summary(name), "leading": leading, "rest": rest})
    return made


def _values(sheets: Sequence[dict[str, Any]], facet: str) -> list[str]:
    return sorted({value for sheet in sheets for value in sheet["facets"][facet]})


def _head(live: Sequence[Row]) -> dict[str, Any]:
    return {
        "methods": len({row.method for row in live if row.task not in plugins.kernels()} - summary.aside()),
        "models": len({row.model for row in live}),
        "rows": len(live),
        "newest": max(row.run.time for row in live).date().isoformat(),
    }
