"""The scaling figure: speed-up against the length of the context, a line for each arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .formatting import SPEEDUP, compact, heading
from .plots import FAINT, LOOKS, label_axes, panels
from .rows import DENSE
from .tables import Comparison, speed_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENGTH = "length"
"""Parameter of a task that holds the length of the context, in tokens."""
FEWEST = 3
"""Lengths that make a line."""


@dataclass(frozen=True)
class LengthSeries:
    """Comparisons that differ only in the length of the context, the shortest first."""

    comparisons: tuple[Comparison, ...]

    @property
    def first(self) -> Comparison:
        """The one of the shortest context."""
        return self.comparisons[0]

    def metrics(self) -> list[str]:
        """The telling speed-up over dense, then those over other arms, as far as there is a line of them."""
        seen = dict.fromkeys(name for comparison in self.comparisons for name in comparison.metrics)
        extra = [name for name in seen if "_vs_" in name and name.endswith(SPEEDUP)]
        wanted = dict.fromkeys([speed_metric(self.first), *extra])
        return [name for name in wanted if name and any(len(line) >= FEWEST for line in self.lines(name).values())]

    def lines(self, metric: str) -> dict[str, list[tuple[int, float]]]:
        """Length and value by arm."""
        by_arm: dict[str, list[tuple[int, float]]] = {}
        for comparison in self.comparisons:
            for arm in comparison.arms:
                if arm.method != DENSE and metric in arm.rows:
                    by_arm.setdefault(arm.label, []).append((comparison.params[LENGTH], arm.rows[metric].value))
        return by_arm


def length_series(comparisons: Sequence[Comparison]) -> list[LengthSeries]:
    """Every set of at least `FEWEST` comparisons that differ only in the length of the context."""
    groups: dict[tuple, list[Comparison]] = {}
    for one in comparisons:
        if isinstance(one.params.get(LENGTH), int):
            others = {name: value for name, value in one.params.items() if name != LENGTH}
            key = (*one.names, compact(others), one.setting.weights, one.setting.device, one.machine)
            groups.setdefault(key, []).append(one)
    made = [LengthSeries(tuple(sorted(group, key=lambda one: one.params[LENGTH]))) for group in groups.values()]
    return [series for series in made if len(series.comparisons) >= FEWEST and series.metrics()]


def draw(series: LengthSeries) -> Figure:
    """One panel for each metric of the series, all arms in each.

    Raises:
        FewstepError: matplotlib is not installed.
    """
    metrics = series.metrics()
    arms = list(dict.fromkeys(label for name in metrics for label in series.lines(name)))
    with panels(len(metrics), 3.3) as (figure, all_axes):
        for axes, metric in zip(all_axes, metrics, strict=True):
            _plot(axes, series.lines(metric), arms)
            label_axes(axes, "tokens of context", heading(metric))
        figure.draw_without_rendering()
    return figure


def _plot(axes: Axes, lines: dict[str, list[tuple[int, float]]], arms: list[str]) -> None:
    for label, points in lines.items():
        colour, marker = LOOKS[arms.index(label) % len(LOOKS)]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=1.4, markersize=5, label=label)
    axes.axhline(1, color=FAINT, linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    lengths = sorted({length for points in lines.values() for length, _ in points})
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.22, linewidth=0.6)
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.legend(fontsize=7.5, frameon=False)
