"""`fewstep report`: committed rows as Markdown, figures and one self-contained HTML page."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from ..errors import BadFileError
from . import shares, tables
from .figures import embedded, inline_svg, save, save_figures
from .readme import quality_cost
from .rows import DENSE, Row
from .scaling import families, save_scaling, scaling_svg
from .tables import Comparison, compare

_IMAGES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}


def write_report(source: Path, html: Path | None, *, figures: Path | None) -> str:
    """The Markdown of all rows in `source`; also writes the page to `html` and PNG and SVG files into `figures`.

    Raises:
        FewstepError: there are no rows, or matplotlib is missing and a page or figures are wanted.
        BadFileError: a row or a samples file is damaged.
        OSError: an output cannot be written.
    """
    rows = tables.load(source)
    if figures is not None:
        save_figures(compare(rows), figures)
        save_scaling(compare(rows), figures)
        for comparison in compare(rows):
            if drawn := shares.draw(comparison):
                save(drawn, figures, comparison.task, comparison.model, "skipped")
    if html is not None:
        text = page(rows, (source if source.is_dir() else source.parent) / "samples")
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(text, encoding="utf-8")
    return markdown(rows)


def markdown(rows: Sequence[Row]) -> str:
    """Every comparison as a Markdown section: table, remarks, how it was measured and the commands that repeat it."""
    sections = [_section(comparison) for comparison in compare(rows)]
    remark = tables.superseded_remark(rows)
    return "\n\n".join(sections + ([remark] if remark else [])) + "\n"


def _section(comparison: Comparison) -> str:
    header = ["arm", *(f"{tables.heading(name)} {tables.direction(name)}".strip() for name in comparison.metrics)]
    body = [[arm.label, *(tables.cell(arm, name) for name in comparison.metrics)] for arm in comparison.arms]
    parts = [f"## {comparison.task}: {comparison.model}", tables.compact(comparison.params), tables.table(header, body)]
    parts += tables.remarks(comparison)
    for origin in tables.origins(comparison):
        against = f" Ratios are pair by pair against {', '.join(origin.baselines)}." if origin.baselines else ""
        parts += [f"Measured on {origin.summary}.{against}", "\n".join(["```", *origin.commands, "```"])]
    return "\n\n".join(filter(None, parts))


def page(rows: Sequence[Row], samples: Path) -> str:
    """The HTML page; `samples` is the folder of ``<run>.json`` files and may not exist."""
    from jinja2 import Environment, StrictUndefined

    comparisons = compare(rows)
    sections = [_article(number, comparison, samples) for number, comparison in enumerate(comparisons)]
    for number, family in enumerate(families(comparisons)):
        sections[comparisons.index(family.first)]["scaling"] = scaling_svg(family, f"scaling{number}")
    template = files("fewstep.bench").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        tasks=[(task, list(group)) for task, group in groupby(_by_task(sections), key=_task)],
        cards=[card for card in map(_card, comparisons) if card],
        methods=len({row.method for row in rows if row.method != DENSE and not row.superseded}),
        models=len({comparison.model for comparison in comparisons}),
        rows=sum(not row.superseded for row in rows),
        newest=max(row.date for row in rows if not row.superseded)[:10],
        superseded=tables.superseded_remark(rows),
        dense=DENSE,
        speedup=tables.SPEEDUP,
        verdict=tables.verdict,
        heading=tables.heading,
        direction=tables.direction,
        amount=tables.amount,
        spread=tables.spread,
        compact=tables.compact,
    )


def _task(section: dict[str, Any]) -> str:
    return section["comparison"].task


def _by_task(sections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    order = list(dict.fromkeys(map(_task, sections)))
    return sorted(sections, key=lambda section: order.index(_task(section)))


def _article(number: int, comparison: Comparison, samples: Path) -> dict[str, Any]:
    origins = tables.origins(comparison)
    return {
        "comparison": comparison,
        "figure": inline_svg(comparison, f"figure{number}"),
        "scaling": "",
        "shares": embedded(drawn, f"shares{number}") if (drawn := shares.draw(comparison)) else "",
        "remarks": tables.remarks(comparison),
        "origins": origins,
        "sheets": [sheet for origin in origins if (sheet := read_samples(samples / f"{origin.run}.json", comparison))],
    }


def _card(comparison: Comparison) -> dict[str, Any] | None:
    """The fastest arm of one comparison with its quality; None where no ratio was measured on a trained model."""
    arm, metric = tables.fastest(comparison), tables.speed_metric(comparison)
    if arm is None or metric is None or comparison.random:
        return None
    row = arm.rows[metric]
    return {
        "value": tables.amount(row),
        "spread": tables.spread(row),
        "what": tables.heading(metric),
        "arm": arm.label,
        "quality": quality_cost(comparison, arm),
        "where": f"{comparison.task}, {comparison.model}",
        "params": tables.compact(comparison.params),
        "verdict": tables.verdict(row),
    }


@dataclass(frozen=True)
class Shown:
    """One output as the page shows it: text, an embedded image, or the name of a file that is missing."""

    text: str | None = None
    image: str | None = None
    """A data URI."""
    missing: str | None = None


@dataclass(frozen=True)
class Sheet:
    """The samples of one run, side by side."""

    arms: tuple[str, ...]
    """Dense first."""
    lines: tuple[tuple[str, tuple[Shown, ...]], ...]
    """What was asked, and one output per arm in the order of `arms`."""


def read_samples(path: Path, comparison: Comparison) -> Sheet | None:
    """The samples of one run, or None if it has none for this task and model.

    Raises:
        BadFileError: the file is no samples file.
    """
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if (stored["task"], stored["model"]) != (comparison.task, comparison.model):
            return None
        by_arm = dict(sorted(stored["arms"].items(), key=lambda item: item[0].split()[:1] != [DENSE]))
        longest: list[dict[str, Any]] = max(by_arm.values(), key=len, default=[])
        titles = [sample["title"] for sample in longest]
        shown = [[_shown(sample, path.parent) for sample in samples] for samples in by_arm.values()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadFileError(f"{path} is not a samples file: {type(error).__name__} {error}") from error
    absent = Shown(missing="no sample")
    lines = [
        (title, tuple(one[index] if index < len(one) else absent for one in shown))
        for index, title in enumerate(titles)
    ]
    return Sheet(tuple(by_arm), tuple(lines)) if lines else None


def _shown(sample: dict[str, Any], folder: Path) -> Shown:
    name = sample.get("file")
    if not name:
        return Shown(text=sample.get("text") or "")
    file = (folder / name).resolve()
    kind = _IMAGES.get(file.suffix.lower())
    # A page is passed on to others: only images inside the samples folder may be embedded in it.
    if kind is None or not file.is_relative_to(folder.resolve()) or not file.is_file():
        return Shown(text=sample.get("text"), missing=f"missing: {name}")
    return Shown(sample.get("text"), f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}")
