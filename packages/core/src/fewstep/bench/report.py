"""`fewstep report`: committed rows as Markdown, figures and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import formatting, pareto, scaling, shares, tables
from .plots import embedded, save
from .readme import quality_cost
from .rows import DENSE, Row
from .samples import FOLDER, read_samples
from .tables import Comparison, compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")


def write_report(source: Path, html: Path | None, *, figures: Path | None) -> str:
    """The Markdown of all rows in `source`; also writes the page to `html` and PNG and SVG files into `figures`.

    Raises:
        FewstepError: there are no rows, or matplotlib is missing and a page or figures are wanted.
        BadFileError: a samples file is damaged.
        OSError: an output cannot be written.
    """
    rows = tables.load(source)
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


def page(rows: Sequence[Row], samples: Path) -> str:
    """The HTML page; `samples` is the folder of samples and may not exist.

    Raises:
        FewstepError: matplotlib is not installed.
        BadFileError: a samples file is damaged.
    """
    from jinja2 import Environment, StrictUndefined

    comparisons = compare(rows)
    sections = [_article(number, comparison, samples) for number, comparison in enumerate(comparisons)]
    for number, series in enumerate(scaling.length_series(comparisons)):
        sections[comparisons.index(series.first)]["scaling"] = embedded(scaling.draw(series), f"scaling{number}")
    template = files("fewstep.bench").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    live = [row for row in rows if not row.superseded]
    return environment.from_string(template).render(
        tasks=_grouped(sections, lambda section: section["comparison"].task),
        cards=[card for card in map(_card, comparisons) if card],
        methods=len({row.method for row in live} - {DENSE}),
        models=len({row.model for row in live}),
        rows=len(live),
        newest=max(row.run.time for row in live).date().isoformat(),
        dense=DENSE,
        formatting=formatting,
        conditions=tables.conditions,
    )


def _article(number: int, comparison: Comparison, samples: Path) -> dict[str, Any]:
    figure, skipped = pareto.draw(comparison, titled=False), shares.draw(comparison)  # the page has a heading
    runs = tables.runs(comparison)
    return {
        "comparison": comparison,
        "figure": embedded(figure, f"figure{number}") if figure else "",
        "scaling": "",
        "shares": embedded(skipped, f"shares{number}") if skipped else "",
        "remarks": tables.remarks(comparison),
        "runs": runs,
        "grids": read_samples(samples, [run.id for run in runs], comparison.task, comparison.model),
    }


def _card(comparison: Comparison) -> dict[str, Any] | None:
    """The fastest arm of one comparison with its quality; None where no ratio was measured on a trained model."""
    metric = tables.speed_metric(comparison)
    arms = [arm for arm in comparison.arms if metric in arm.rows]
    if metric is None or not arms or comparison.random:
        return None
    arm = max(arms, key=lambda arm: arm.rows[metric].value)
    return {"comparison": comparison, "arm": arm, "row": arm.rows[metric], "quality": quality_cost(comparison, arm)}
