"""The Pareto figure: quality against waiting time, one point per arm, labelled in place."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FewstepError
from .rows import DENSE
from .tables import QUALITY, SPEEDUP, Arm, Comparison, compact, heading, quality_metric, speed_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#22262b"
"""Colour of text and axes; `inline_svg` turns it into the text colour of the page."""
_FAINT = "#8a9099"
# Okabe and Ito's colours, which colour-blind people can tell apart; the marker differs as well.
LOOKS = [("#D55E00", "o"), ("#0072B2", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P")]
STYLE = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.fonttype": "none",  # text stays text: it can be read out, found and selected
    "svg.hashsalt": "fewstep",  # the same rows give the same file
    **{key: INK for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
}
_IDENTITY = {"top1_agreement": 1.0, "kl": 0.0, "nll_gap": 0.0}
"""What the dense model has by definition in metrics that compare with it."""
_UNSAID = ("Date", "Creator", "Format", "Type")
"""What the SVG file leaves out, so that the same rows give the same file."""
_SPOTS = [
    (across * gap, up * gap)
    for gap in (9, 20, 34, 50)
    for across, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]
"""Where a label may stand, in points from its point, the best first."""
Box = tuple[float, float, float, float]
"""Left, bottom, right and top in pixels."""


@dataclass(frozen=True)
class Point:
    """One arm in the figure."""

    arm: Arm
    x: float
    """Waiting time relative to dense, measured pair by pair; dense is 1."""
    y: float
    x_error: tuple[float, float]
    """Distances down and up to the spread, at least 0."""
    y_error: tuple[float, float]


def points(comparison: Comparison) -> list[Point]:
    """The arms that have both a speed-up and a figure of quality; empty unless a method is among them.

    Empty too where ratios are not against dense, as in a race of recipes.
    """
    speed, quality = speed_metric(comparison), quality_metric(comparison)
    if not speed or not quality:
        return []
    against = {row.baseline or DENSE for arm in comparison.arms for row in arm.rows.values()}
    if not all(baseline.startswith(DENSE) for baseline in against):
        return []
    found = [_point(arm, speed, quality) for arm in comparison.arms]
    kept = [point for point in found if point and math.isfinite(point.x) and math.isfinite(point.y)]
    return kept if any(point.arm.method != DENSE for point in kept) else []


def _point(arm: Arm, speed: str, quality: str) -> Point | None:
    ratio, score = arm.rows.get(speed), arm.rows.get(quality)
    dense = arm.method == DENSE
    y = score.value if score else _IDENTITY.get(quality) if dense else None
    if y is None or (not dense and not (ratio and ratio.value > 0)):
        return None
    x = 1 / ratio.value if ratio else 1.0
    times = (1 / ratio.spread[1], 1 / ratio.spread[0]) if ratio and ratio.spread and min(ratio.spread) > 0 else (x, x)
    scores = score.spread if score and score.spread else (y, y)
    return Point(arm, x, y, _distances(x, times), _distances(y, scores))


def _distances(value: float, bounds: tuple[float, float]) -> tuple[float, float]:
    return max(0.0, value - bounds[0]), max(0.0, bounds[1] - value)


def front(found: Sequence[Point], higher: bool) -> list[Point]:
    """The points that no other point beats in time and quality at once, the fastest first."""
    sign = 1 if higher else -1
    best, kept = -math.inf, []
    for point in sorted(found, key=lambda point: (point.x, -sign * point.y)):
        if sign * point.y > best:
            best = sign * point.y
            kept.append(point)
    return kept


def draw(comparisons: Sequence[Comparison], *, titled: bool = True) -> Figure | None:
    """One panel below the other for every comparison that has `points`; None if none has.

    Raises:
        FewstepError: matplotlib is not installed.
    """
    panels = [comparison for comparison in comparisons if points(comparison)]
    if not panels:
        return None
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FewstepError('figures need matplotlib: pip install "fewstep-core[bench]"') from error
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.6 * len(panels)), layout="constrained")
        all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
        for axes, comparison in zip(all_axes, panels, strict=True):
            _panel(axes, comparison)
            if titled:
                title = f"{comparison.task}: {comparison.model}\n{compact(comparison.params)}".strip()
                axes.set_title(title, loc="left", fontsize=9, wrap=True)
        figure.draw_without_rendering()  # the places of the labels depend on the layout, so it is settled here
        figure.set_layout_engine("none")
        for axes, comparison in zip(all_axes, panels, strict=True):
            _label(axes, comparison)
    return figure


def _panel(axes: Axes, comparison: Comparison) -> None:
    speed, quality = speed_metric(comparison) or "", quality_metric(comparison) or ""
    found = points(comparison)
    best = front(found, QUALITY[quality])
    axes.plot([p.x for p in best], [p.y for p in best], "--", color=_FAINT, linewidth=1, zorder=1)
    methods = list(dict.fromkeys(p.arm.method for p in found if p.arm.method != DENSE))
    for point in found:
        dense = point.arm.method == DENSE
        colour, marker = (INK, "*") if dense else LOOKS[methods.index(point.arm.method) % len(LOOKS)]
        errors = {"xerr": [[e] for e in point.x_error], "yerr": [[e] for e in point.y_error]}
        size = 12 if dense else 7
        axes.errorbar(point.x, point.y, **errors, fmt=marker, color=colour, markersize=size, elinewidth=1, capsize=2)
    axes.margins(0.16, 0.2)
    axes.grid(color=_FAINT, alpha=0.22, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:g}x")
    waiting = f"{heading(speed.removesuffix(SPEEDUP))}, dense = 1x  (lower is better)"
    axes.set_xlabel(f"{waiting}\ndashed: Pareto front; bars: minimum and maximum over the repeats")
    axes.set_ylabel(f"{heading(quality)}  ({'higher' if QUALITY[quality] else 'lower'} is better)")


def _label(axes: Axes, comparison: Comparison) -> None:
    """Write each arm's name where it covers no point, error bar, front line or other name."""
    found = points(comparison)
    best = front(found, QUALITY[quality_metric(comparison) or ""])
    pixels = [axes.transData.transform(place) for point in found for place in _places(point)]
    line = [axes.transData.transform((point.x, point.y)) for point in best]
    pixels += [a + (b - a) * step / 24 for a, b in zip(line, line[1:], strict=False) for step in range(1, 24)]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    for point in found:
        taken.append(_place_name(axes, point, taken))


def _places(point: Point) -> list[tuple[float, float]]:
    """Points along the marker and its error bars, in data units."""
    steps = [step / 6 for step in range(7)]
    (left, right), (down, up) = point.x_error, point.y_error
    across = [(point.x - left + (left + right) * step, point.y) for step in steps]
    return across + [(point.x, point.y - down + (down + up) * step) for step in steps]


def _place_name(axes: Axes, point: Point, taken: list[Box]) -> Box:
    """Annotate one point at the spot with the least overlap; returns the box of the text in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    leader = {"arrowstyle": "-", "color": _FAINT, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 5}
    name = axes.annotate(
        point.arm.label, (point.x, point.y), (0, 0), textcoords="offset points", fontsize=8.5, arrowprops=leader
    )
    name.set_in_layout(False)
    room = axes.get_window_extent(renderer).extents

    def stand(spot: tuple[int, int]) -> Box:
        name.set_position(spot)
        name.set_ha("left" if spot[0] > 0 else "right" if spot[0] < 0 else "center")
        name.set_va("bottom" if spot[1] > 0 else "top" if spot[1] < 0 else "center")
        name.update_positions(renderer)
        left, bottom, right, top = Text.get_window_extent(name, renderer).extents
        return left, bottom, right, top

    def cost(box: Box) -> float:
        outside = _overlap(box, box) - _overlap(box, room)
        return round(10 * outside + sum(_overlap(box, other) for other in taken))

    return stand(min(_SPOTS, key=lambda spot: cost(stand(spot))))


def _overlap(one: Box, other: Box) -> float:
    """Area that two boxes share, in square pixels."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def inline_svg(comparison: Comparison, prefix: str) -> str:
    """The figure as an ``<svg>`` element for a page, its ids starting with `prefix`; empty if there are no points."""
    figure = draw([comparison], titled=False)  # the page has a heading
    return embedded(figure, prefix) if figure else ""


def embedded(figure: Figure, prefix: str) -> str:
    """A figure as an ``<svg>`` element for a page, its ids starting with `prefix`."""
    text = _svg(figure)
    text = text[text.index("<svg") :].replace(INK, "currentColor")  # follows the light or dark scheme of the page
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    buffer = StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_UNSAID))
    return buffer.getvalue()


def save_figures(comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """Write ``<task>-<model>.png`` and ``.svg`` for each task and model that has `points`; returns the paths.

    Of several comparisons the one with the most arms is drawn; the report page has all of them.

    Raises:
        FewstepError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.task, comparison.model), []).append(comparison)
    paths = []
    for names, group in groups.items():
        figure = draw([max(group, key=lambda comparison: len(points(comparison)))])
        if figure is not None:
            paths += save(figure, folder, *names)
    return paths


def save(figure: Figure, folder: Path, *names: str) -> list[Path]:
    """Write a figure as PNG and SVG, in a file named by `names`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(names)).strip("-")
    png, svg = folder / f"{stem}.png", folder / f"{stem}.svg"
    figure.savefig(png, dpi=144, facecolor="white", metadata={"Software": None}, pil_kwargs={"optimize": True})
    svg.write_text(_svg(figure), encoding="utf-8")
    return [png, svg]
