"""The picture of predicted against measured speed-ups."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from ..bench.plots import FAINT, INK, LOOKS, label_axes, panels, svg
from ..errors import FewstepError
from .check import Machines, Pair

BAND = 1.2
"""Shaded: predictions within 20 %."""


def write(found: Sequence[Pair], machines: Machines, path: Path) -> None:
    """Write an SVG or PNG, by the ending of the path.

    Raises:
        FewstepError: matplotlib is not installed, or the ending is another.
        OSError: the file cannot be written.
    """
    if path.suffix not in (".svg", ".png"):
        raise FewstepError(f"--figure {path}: figures are .svg or .png")
    with panels(1, 4.2) as (drawn, (axes,)):
        low, high = 0.5, 1.25 * max(max(one.row.value, one.predicted(machines)) for one in found)
        axes.plot([low, high], [low, high], color=INK, linewidth=1)
        axes.fill_between([low, high], [low / BAND, high / BAND], [low * BAND, high * BAND], color=FAINT, alpha=0.18)
        methods = dict.fromkeys(one.row.method for one in found)
        for method, (colour, marker) in zip(methods, itertools.cycle(LOOKS), strict=False):
            some = [one for one in found if one.row.method == method]
            x, y = [one.row.value for one in some], [one.predicted(machines) for one in some]
            axes.plot(x, y, marker, color=colour, markersize=4, linestyle="none", alpha=0.75, label=method)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, labels=[f"{tick:g}x" for tick in ticks])
            axis.set_ticks([], minor=True)
        label_axes(axes, "measured speed-up of a whole model", "predicted from the configuration (shaded: within 20 %)")
        axes.legend(frameon=False, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".svg":
            path.write_text(svg(drawn), encoding="utf-8")
        else:
            drawn.savefig(path, dpi=144, facecolor="white", metadata={"Software": None})
