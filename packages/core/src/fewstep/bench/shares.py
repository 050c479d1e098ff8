"""The figure of methods that skip work: quality and distance to dense against the share of pairs that is skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .figures import INK, LOOKS, STYLE
from .rows import DENSE
from .tables import QUALITY, Comparison, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARE = "skipped_share"
Line = list[tuple[float, float, tuple[float, float]]]
"""Share, value and its spread, from left to right."""


def lines(comparison: Comparison, metric: str) -> dict[str, Line]:
    """By method, where `metric` is at which share; arms without a share are left out."""
    found: dict[str, Line] = {}
    for arm in comparison.arms:
        share, row = arm.rows.get(SHARE), arm.rows.get(metric)
        if arm.method != DENSE and share and row:
            found.setdefault(arm.method, []).append((share.value, row.value, row.spread or (row.value, row.value)))
    return {method: sorted(points) for method, points in found.items()}


def draw(comparison: Comparison) -> Figure | None:
    """A panel for each figure of quality that there is, at most two; None where no arm skips a known share."""
    metrics = [metric for metric in QUALITY if lines(comparison, metric)][:1]
    metrics += ["kl"] if lines(comparison, "kl") and "kl" not in metrics else []
    if not metrics:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.2 * len(metrics)), layout="constrained")
        for axes, metric in zip(figure.subplots(len(metrics), squeeze=False)[:, 0], metrics, strict=True):
            _panel(axes, comparison, metric)
    return figure


def _panel(axes: Axes, comparison: Comparison, metric: str) -> None:
    for number, (method, points) in enumerate(lines(comparison, metric).items()):
        (colour, marker), style = LOOKS[number % len(LOOKS)], "-" if number < len(LOOKS) else "--"
        shares, values, spreads = zip(*points, strict=True)
        errors = [[v - low for v, (low, _) in zip(values, spreads, strict=True)]]
        errors += [[high - v for v, (_, high) in zip(values, spreads, strict=True)]]
        axes.errorbar(shares, values, errors, fmt=marker + style, color=colour, markersize=5, capsize=2, label=method)
    dense = next((arm.rows[metric] for arm in comparison.arms if arm.method == DENSE and metric in arm.rows), None)
    if dense:
        axes.axhline(dense.value, color=INK, linestyle=":", linewidth=1, label=DENSE)
    if metric == "kl" and all(point[1] > 0 for line in lines(comparison, metric).values() for point in line):
        axes.set_yscale("log")
    axes.set_ylabel(f"{heading(metric)}  ({'higher' if QUALITY[metric] else 'lower'} is better)")
    axes.set_xlabel("share of the pairs of token and expert that is skipped")
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
