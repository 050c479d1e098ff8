"""The picture of a race: quality over seconds of training, one line for each recipe."""

from __future__ import annotations

import importlib.util
import io
import itertools
import statistics
from collections.abc import Mapping, Sequence

from ..bench.figures import LOOKS, STYLE
from ..bench.tables import heading
from ..errors import FewstepError

Curve = Sequence[tuple[float, float]]
"""Seconds of training and quality at each scoring."""


def check_drawable() -> None:
    """To be called before hours of training.

    Raises:
        FewstepError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise FewstepError('the picture of a race needs matplotlib: pip install "fewstep-core[bench]"')


def picture(curves: Mapping[str, Sequence[Curve]], metric: str, dense: float) -> bytes:
    """A PNG: the mean over the seeds of each recipe, minimum to maximum shaded; dashed what the teacher has.

    Args:
        curves: by label, one for each seed, scored at the same marks.
        metric: what was scored.
        dense: the same of the model that all began from, with all its steps.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.6), layout="constrained")
        axes = figure.subplots()
        for (label, seeds), (colour, marker) in zip(curves.items(), itertools.cycle(LOOKS), strict=False):
            marks = list(zip(*seeds, strict=True))
            x = [statistics.mean(at for at, _ in mark) for mark in marks]
            values = [[value for _, value in mark] for mark in marks]
            axes.plot(x, [*map(statistics.mean, values)], marker=marker, color=colour, markersize=4, label=label)
            axes.fill_between(x, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.15, linewidth=0)
        axes.axhline(dense, linestyle="--", linewidth=1, color="black", label="teacher, all steps")
        axes.set_xlabel("seconds of training")
        axes.set_ylabel(heading(metric))
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        out = io.BytesIO()
        figure.savefig(out, dpi=110, facecolor="white", metadata={"Software": None}, pil_kwargs={"optimize": True})
    return out.getvalue()
