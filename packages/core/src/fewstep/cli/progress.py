"""What a training run shows: a bar with an ETA and the newest losses on a terminal, some plain lines when piped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

LINES = 100
"""Plain lines for the steps of one run, about."""


class Lines:
    """A line for some of the steps and for everything else."""

    def step(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Print the first step, the last, and about a hundred between them."""
        if done in (1, total) or done % max(1, total // LINES) == 0:
            print(f"[{done}/{total}] {_losses(metrics)}", flush=True)

    def say(self, text: str) -> None:
        """Print `text`."""
        print(text, flush=True)


class Bar:
    """A bar with an ETA; everything that is said scrolls above it."""

    def __init__(self, title: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        shown = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Remaining()
        self.progress = Progress(*shown, TextColumn("{task.fields[losses]}"), refresh_per_second=2)
        self.bar = self.progress.add_task(title, total=None, losses="")

    def step(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Move the bar."""
        self.progress.update(self.bar, completed=done, total=total, losses=_losses(metrics))

    def say(self, text: str) -> None:
        """Print `text` above the bar."""
        self.progress.console.print(text, markup=False, highlight=False)


@contextmanager
def following(title: str) -> Iterator[Lines | Bar]:
    """What suits where stdout goes."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    bar = Bar(title)
    with bar.progress:
        yield bar


def _losses(metrics: dict[str, float]) -> str:
    hidden = ("/exit", "/gradient")
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if not name.endswith(hidden))
