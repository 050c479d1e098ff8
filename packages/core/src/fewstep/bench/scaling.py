"""The scaling figure: speed-up against the length of the context, a line for each arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .figures import LOOKS, STYLE, embedded, save
from .rows import DENSE
from .tables import SPEEDUP, Comparison, compact, heading, speed_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENGTH = "length"
"""The parameter of a task that says how long the context is, in tokens."""
FEWEST = 3
"""Lengths that make a line."""


@dataclass(frozen=True)
class Family:
    """Comparisons that differ only in the length of the context, the shortest first."""

    comparisons: tuple[Comparison, ...]

    @property
    def first(self) -> Comparison:
        """The one of the shortest context."""
        return self.comparisons[0]

    def metrics(self) -> list[str]:
        """The telling speed-up over dense, then those over other arms, as far as there is a line of them."""
        telling = speed_metric(self.first)
        seen = dict.fromkeys(name for comparison in self.comparisons for name in comparison.metrics)
        beside = [name for name in seen if "_vs_" in name and name.endswith(SPEEDUP)]
        wanted = [*([telling] if telling in seen else []), *(name for name in beside if name != telling)]
        return [name for name in wanted if any(len(line) >= FEWEST for line in self.lines(name).values())]

    def lines(self, metric: str) -> dict[str, list[tuple[int, float]]]:
        """Length and value by arm."""
        found: dict[str, list[tuple[int, float]]] = {}
        for comparison in self.comparisons:
            for arm in comparison.arms:
                if arm.method != DENSE and metric in arm.rows:
                    found.setdefault(arm.label, []).append((comparison.params[LENGTH], arm.rows[metric].value))
        return found


def families(comparisons: Sequence[Comparison]) -> list[Family]:
    """Every set of at least `FEWEST` comparisons that differ only in the length of the context."""
    groups: dict[tuple, list[Comparison]] = {}
    for one in comparisons:
        if isinstance(one.params.get(LENGTH), int):
            others = {name: value for name, value in one.params.items() if name != LENGTH}
            machine = (one.setting.weights, one.setting.device, one.setting.dtype, one.setting.threads)
            groups.setdefault((one.task, one.model, compact(others), machine), []).append(one)
    made = [Family(tuple(sorted(group, key=lambda one: one.params[LENGTH]))) for group in groups.values()]
    return [family for family in made if len(family.comparisons) >= FEWEST and family.metrics()]


def draw(family: Family) -> Figure:
    """One panel for each metric of the family, all arms in each."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    metrics = family.metrics()
    arms = list(dict.fromkeys(label for name in metrics for label in family.lines(name)))
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.3 * len(metrics)), layout="constrained")
        for axes, metric in zip(figure.subplots(len(metrics), squeeze=False)[:, 0], metrics, strict=True):
            _panel(axes, family.lines(metric), arms, metric)
        figure.draw_without_rendering()
    return figure


def _panel(axes: Axes, lines: dict[str, list[tuple[int, float]]], arms: list[str], metric: str) -> None:
    for label, points in lines.items():
        colour, marker = LOOKS[arms.index(label) % len(LOOKS)]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=1.4, markersize=5, label=label)
    axes.axhline(1, color="#8a9099", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    lengths = sorted({length for points in lines.values() for length, _ in points})
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.22, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.set_xlabel("tokens of context")
    axes.set_ylabel(heading(metric))
    axes.legend(fontsize=7.5, frameon=False)


def scaling_svg(family: Family, prefix: str) -> str:
    """The figure as an ``<svg>`` element for a page, its ids starting with `prefix`."""
    return embedded(draw(family), prefix)


def save_scaling(comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """Write ``<task>-<model>-by-length.png`` and ``.svg`` for each task and model; returns the paths.

    Of several families of one task and model, the one with the most lengths is drawn.
    """
    groups: dict[tuple[str, str], list[Family]] = {}
    for family in families(comparisons):
        groups.setdefault((family.first.task, family.first.model), []).append(family)
    paths = []
    for names, group in groups.items():
        paths += save(draw(max(group, key=lambda family: len(family.comparisons))), folder, *names, "by-length")
    return paths
