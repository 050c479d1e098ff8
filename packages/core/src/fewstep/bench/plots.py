"""Panels in one style, and figures as files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FewstepError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#22262b"
"""Colour of text and axes."""
FAINT = "#8a9099"
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
_UNSAID = ("Date", "Creator", "Format", "Type")
"""Metadata that the SVG file leaves out, so that the same rows give the same file."""


def check_matplotlib() -> None:
    """Look for matplotlib.

    Raises:
        FewstepError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise FewstepError('figures need matplotlib: pip install "fewstep-core[bench]"') from error


@contextmanager
def panels(count: int, height: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `count` panels, one below the other, each `height` inches high; drawn to inside the context.

    Raises:
        FewstepError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, height * count), layout="constrained")
        yield figure, list(figure.subplots(count, squeeze=False)[:, 0])


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes and take away the frame above and on the right."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


def svg(figure: Figure) -> str:
    """The text of an SVG file; the same figure gives the same text."""
    from matplotlib import rc_context

    buffer = StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_UNSAID))
    return buffer.getvalue()


def save(figure: Figure, folder: Path, *names: str) -> list[Path]:
    """Write a figure as PNG and SVG, in files named by `names`; returns the paths.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(names)).strip("-")
    png, vector = folder / f"{stem}.png", folder / f"{stem}.svg"
    figure.savefig(png, dpi=144, facecolor="white", metadata={"Software": None}, pil_kwargs={"optimize": True})
    vector.write_text(svg(figure), encoding="utf-8")
    return [png, vector]
