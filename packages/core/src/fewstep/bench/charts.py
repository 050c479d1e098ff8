"""Figures of the report's page as data: the page draws them itself, at the width that it has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import pareto, scaling, shares
from .formatting import QUALITY, SPEEDUP, better, heading
from .rows import DENSE
from .tables import Comparison, quality_metric, speed_metric

Chart = dict[str, Any]
"""Title, two axes, and series of points; JSON."""


def pareto_chart(comparison: Comparison) -> Chart | None:
    """Quality against waiting time, a series for each method; None where there is nothing to compare."""
    shown = pareto.points(comparison)
    if not shown:
        return None
    quality = quality_metric(comparison) or ""
    series: dict[str, list[dict[str, Any]]] = {}
    for point in shown:
        (left, right), (down, up) = point.x_error, point.y_error
        bars = {"x0": point.x - left, "x1": point.x + right, "y0": point.y - down, "y1": point.y + up}
        series.setdefault(point.arm.method, []).append({"x": point.x, "y": point.y, "name": point.arm.label, **bars})
    waiting = heading((speed_metric(comparison) or "").removesuffix(SPEEDUP))
    return {
        "title": "Quality against waiting time",
        "x": {"label": f"{waiting}, dense = 1x (lower is better)", "unit": "x"},
        "y": {"label": f"{heading(quality)} ({better(quality)})"},
        "series": _series(series, joined=False),
        "front": [[point.x, point.y] for point in pareto.front(shown, QUALITY[quality])],
    }


def share_charts(comparison: Comparison) -> list[Chart]:
    """Quality, and KL to dense, against the share of pairs that is skipped; empty where no arm skips a known share."""
    metrics = [metric for metric in QUALITY if shares.lines(comparison, metric)][:1]
    metrics += ["kl"] if shares.lines(comparison, "kl") and "kl" not in metrics else []
    return [_share_chart(comparison, metric) for metric in metrics]


def _share_chart(comparison: Comparison, metric: str) -> Chart:
    lines = shares.lines(comparison, metric)
    series = {
        method: [{"x": x, "y": y, "y0": low, "y1": high, "name": method} for x, y, (low, high) in points]
        for method, points in lines.items()
    }
    dense = next(
        (arm.rows[metric].value for arm in comparison.arms if arm.method == DENSE and metric in arm.rows), None
    )
    positive = all(point["y0"] > 0 for points in series.values() for point in points)
    return {
        "title": f"{heading(metric)[:1].upper()}{heading(metric)[1:]} by skipped share",
        "x": {"label": "share of pairs of token and expert that is skipped", "unit": "%"},
        "y": {"label": f"{heading(metric)} ({better(metric)})", "log": metric == "kl" and positive},
        "series": _series(series, joined=True),
        **({} if dense is None else {"level": dense}),
    }


def scaling_charts(series: scaling.LengthSeries) -> list[Chart]:
    """Speed-up against the length of the context, a chart for each metric of the series."""
    return [
        {
            "title": f"{heading(metric)[:1].upper()}{heading(metric)[1:]} by length",
            "x": {"label": "tokens of context", "log": True, "ticks": _lengths(series.lines(metric).values())},
            "y": {"label": heading(metric), "unit": "x", "zero": True},
            "series": _series(
                {
                    label: [{"x": length, "y": value, "name": label} for length, value in points]
                    for label, points in series.lines(metric).items()
                },
                joined=True,
            ),
            "level": 1,
        }
        for metric in series.metrics()
    ]


def _lengths(lines: Iterable[list[tuple[int, float]]]) -> list[int]:
    return sorted({length for points in lines for length, _ in points})


def _series(by_name: dict[str, list[dict[str, Any]]], *, joined: bool) -> list[dict[str, Any]]:
    return [{"name": name, "points": points, "joined": joined} for name, points in by_name.items()]
