"""The Pareto figure: quality against waiting time, one point per arm, labelled in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .formatting import QUALITY, SPEEDUP, better, compact, heading
from .plots import FAINT, INK, LOOKS, label_axes, panels
from .rows import DENSE
from .tables import Arm, Comparison, quality_metric, speed_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IDENTITY = {"top1_agreement": 1.0, "kl": 0.0, "nll_gap": 0.0}
"""Values of the dense model, by definition, in metrics that compare with it."""
_SPOTS = [
    (across * gap, up * gap)
    for gap in (9, 20, 34, 50)
    for across, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]
"""Places of a label, in points from its point, the best first."""
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
    """The arms that have both a speed-up and a quality metric; empty unless a method is among them.

    Empty too where ratios are not against dense, as between recipes.
    """
    speed, quality = speed_metric(comparison), quality_metric(comparison)
    if not speed or not quality:
        return []
    baselines = {arm.rows[speed].baseline or DENSE for arm in comparison.arms if speed in arm.rows}
    if not all(baseline.startswith(DENSE) for baseline in baselines):
        return []
    candidates = [_point(arm, speed, quality) for arm in comparison.arms]
    kept = [point for point in candidates if point and math.isfinite(point.x) and math.isfinite(point.y)]
    return kept if any(point.arm.method != DENSE for point in kept) else []


def _point(arm: Arm, speed: str, quality: str) -> Point | None:
    ratio, score = arm.rows.get(speed), arm.rows.get(quality)
    dense = arm.method == DENSE
    y = score.value if score else IDENTITY.get(quality) if dense else None
    if y is None or (not dense and not (ratio and ratio.value > 0)):
        return None
    x = 1 / ratio.value if ratio else 1.0
    times = (1 / ratio.spread[1], 1 / ratio.spread[0]) if ratio and ratio.spread and min(ratio.spread) > 0 else (x, x)
    scores = score.spread if score and score.spread else (y, y)
    return Point(arm, x, y, _distances(x, times), _distances(y, scores))


def _distances(value: float, bounds: tuple[float, float]) -> tuple[float, float]:
    return max(0.0, value - bounds[0]), max(0.0, bounds[1] - value)


def front(candidates: Sequence[Point], higher: bool) -> list[Point]:
    """The points that no other point beats in time and quality at once, the fastest first."""
    sign = 1 if higher else -1
    best, kept = -math.inf, []
    for point in sorted(candidates, key=lambda point: (point.x, -sign * point.y)):
        if sign * point.y > best:
            best = sign * point.y
            kept.append(point)
    return kept


def draw(comparison: Comparison) -> Figure | None:
    """The figure of one comparison; None where it has no `points`.

    Raises:
        FewstepError: matplotlib is not installed.
    """
    shown = points(comparison)
    if not shown:
        return None
    quality = quality_metric(comparison) or ""
    best = front(shown, QUALITY[quality])
    with panels(1, 3.6) as (figure, (axes,)):
        _plot(axes, shown, best)
        waiting = f"{heading((speed_metric(comparison) or '').removesuffix(SPEEDUP))}, dense = 1x  (lower is better)"
        bars = "dashed: Pareto front; bars: minimum and maximum over the repeats"
        label_axes(axes, f"{waiting}\n{bars}", f"{heading(quality)}  ({better(quality)})")
        title = f"{comparison.task}: {comparison.model}\n{compact(comparison.params)}".strip()
        axes.set_title(title, loc="left", fontsize=9, wrap=True)
        figure.draw_without_rendering()  # the places of the labels depend on the layout, so it is settled here
        figure.set_layout_engine("none")
        _label(axes, shown, best)
    return figure


def _plot(axes: Axes, shown: Sequence[Point], best: Sequence[Point]) -> None:
    axes.plot([p.x for p in best], [p.y for p in best], "--", color=FAINT, linewidth=1, zorder=1)
    methods = list(dict.fromkeys(p.arm.method for p in shown if p.arm.method != DENSE))
    for point in shown:
        dense = point.arm.method == DENSE
        colour, marker = (INK, "*") if dense else LOOKS[methods.index(point.arm.method) % len(LOOKS)]
        errors = {"xerr": [[e] for e in point.x_error], "yerr": [[e] for e in point.y_error]}
        size = 12 if dense else 7
        axes.errorbar(point.x, point.y, **errors, fmt=marker, color=colour, markersize=size, elinewidth=1, capsize=2)
    axes.margins(0.16, 0.2)
    axes.grid(color=FAINT, alpha=0.22, linewidth=0.6)
    axes.xaxis.set_major_formatter("{x:g}x")


def _label(axes: Axes, shown: Sequence[Point], best: Sequence[Point]) -> None:
    """Write each arm's name where it covers no point, error bar, front line or other name."""
    pixels = [axes.transData.transform(place) for point in shown for place in _extent(point)]
    line = [axes.transData.transform((point.x, point.y)) for point in best]
    pixels += [a + (b - a) * step / 24 for a, b in zip(line, line[1:], strict=False) for step in range(1, 24)]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    for point in shown:
        taken.append(_place_name(axes, point, taken))


def _extent(point: Point) -> list[tuple[float, float]]:
    """Positions along the marker and its error bars, in data units."""
    steps = [step / 6 for step in range(7)]
    (left, right), (down, up) = point.x_error, point.y_error
    across = [(point.x - left + (left + right) * step, point.y) for step in steps]
    return across + [(point.x, point.y - down + (down + up) * step) for step in steps]


def _place_name(axes: Axes, point: Point, taken: list[Box]) -> Box:
    """Annotate one point at the spot with the least overlap; returns the box of the text in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    leader = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 5}
    at, units = (point.x, point.y), "offset points"
    name = axes.annotate(point.arm.label, at, (0, 0), textcoords=units, fontsize=8.5, arrowprops=leader)
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
