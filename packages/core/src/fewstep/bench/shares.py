"""The figure of methods that skip work: quality and distance to dense against the share of pairs that is skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .formatting import QUALITY, better, heading
from .plots import INK, LOOKS, label_axes, panels
from .rows import DENSE
from .tables import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARE = "skipped_share"
Line = list[tuple[float, float, tuple[float, float]]]
"""Share, value and its spread, from left to right."""


def lines(comparison: Comparison, metric: str) -> dict[str, Line]:
    """Shares and values of `metric` by method; arms without a share are left out."""
    by_method: dict[str, Line] = {}
    for arm in comparison.arms:
        share, row = arm.rows.get(SHARE), arm.rows.get(metric)
        if arm.method != DENSE and share and row:
            by_method.setdefault(arm.method, []).append((share.value, row.value, row.spread or (row.value, row.value)))
    return {method: sorted(points) for method, points in by_method.items()}


def draw(comparison: Comparison) -> Figure | None:
    """A panel for the most telling quality metric and one for KL; None where no arm skips a known share.

    Raises:
        FewstepError: matplotlib is not installed.
    """
    metrics = [metric for metric in QUALITY if lines(comparison, metric)][:1]
    metrics += ["kl"] if lines(comparison, "kl") and "kl" not in metrics else []
    if not metrics:
        return None
    with panels(len(metrics), 3.2) as (figure, all_axes):
        for axes, metric in zip(all_axes, metrics, strict=True):
            _plot(axes, comparison, metric)
    return figure


def _plot(axes: Axes, comparison: Comparison, metric: str) -> None:
    by_method = lines(comparison, metric)
    for number, (method, points) in enumerate(by_method.items()):
        (colour, marker), style = LOOKS[number % len(LOOKS)], "-" if number < len(LOOKS) else "--"
        shares, values, spreads = zip(*points, strict=True)
        errors = [[v - low for v, (low, _) in zip(values, spreads, strict=True)]]
        errors += [[high - v for v, (_, high) in zip(values, spreads, strict=True)]]
        axes.errorbar(shares, values, errors, fmt=marker + style, color=colour, markersize=5, capsize=2, label=method)
    dense = next((arm.rows[metric] for arm in comparison.arms if arm.method == DENSE and metric in arm.rows), None)
    if dense:
        axes.axhline(dense.value, color=INK, linestyle=":", linewidth=1, label=DENSE)
    if metric == "kl" and all(point[1] > 0 for line in by_method.values() for point in line):
        axes.set_yscale("log")
    label_axes(axes, "share of the pairs of token and expert that is skipped", f"{heading(metric)}  ({better(metric)})")
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.legend(frameon=False, fontsize=8)
