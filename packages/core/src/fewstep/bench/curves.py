"""The picture of a training comparison: quality over seconds of training, one line for each recipe."""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Mapping, Sequence

from .formatting import heading
from .plots import LOOKS, label_axes, panels

Curve = Sequence[tuple[float, float]]
"""Seconds of training and quality at each scoring."""


def picture(curves: Mapping[str, Sequence[Curve]], metric: str, dense: float) -> bytes:
    """A PNG: the mean over the seeds of each recipe, minimum to maximum shaded; dashed the value of the teacher.

    Args:
        curves: by label, one for each seed, scored at the same marks.
        metric: the quality metric that was scored.
        dense: its value for the model that all began from, with all its steps.
    """
    with panels(1, 3.6) as (figure, (axes,)):
        for (label, seeds), (colour, marker) in zip(curves.items(), itertools.cycle(LOOKS), strict=False):
            marks = list(zip(*seeds, strict=True))
            x = [statistics.mean(at for at, _ in mark) for mark in marks]
            values = [[value for _, value in mark] for mark in marks]
            axes.plot(x, [*map(statistics.mean, values)], marker=marker, color=colour, markersize=4, label=label)
            axes.fill_between(x, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.15, linewidth=0)
        axes.axhline(dense, linestyle="--", linewidth=1, color="black", label="teacher, all steps")
        label_axes(axes, "seconds of training", heading(metric))
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
        out = io.BytesIO()
        figure.savefig(out, dpi=110, facecolor="white", metadata={"Software": None}, pil_kwargs={"optimize": True})
    return out.getvalue()
