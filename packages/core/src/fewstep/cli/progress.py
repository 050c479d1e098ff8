"""Progress of long work: a bar with an ETA below scrolling lines on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..bench.settings import Event

LINES = 100
"""Plain lines for the steps of one training run, about."""


class PlainProgress:
    """Lines on stdout."""

    def step(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Print the first training step, the last, and about a hundred between them."""
        if done in (1, total) or done % max(1, total // LINES) == 0:
            self.say(f"[{done}/{total}] {_losses(metrics)}")

    def event(self, event: Event) -> None:
        """Print a step of a measurement with the number of runs that are over."""
        self.say(f"[{event.done}/{event.total}] {event.text}")

    def say(self, text: str) -> None:
        """Print `text`."""
        print(text, flush=True)


class BarProgress(PlainProgress):
    """A bar; everything that is said scrolls above it."""

    def __init__(self, title: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        shown = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Remaining()
        self.progress = Progress(*shown, TextColumn("{task.fields[losses]}"), refresh_per_second=2)
        self.bar = self.progress.add_task(title, total=None, losses="")

    def step(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Move the bar and show the newest losses."""
        self.progress.update(self.bar, completed=done, total=total, losses=_losses(metrics))

    def event(self, event: Event) -> None:
        """Move the bar and print the step above it."""
        self.progress.update(self.bar, completed=event.done, total=event.total)
        self.say(event.text)

    def say(self, text: str) -> None:
        """Print `text` above the bar."""
        self.progress.console.print(text, markup=False, highlight=False)


@contextmanager
def following(title: str) -> Iterator[PlainProgress]:
    """A bar where stdout is a terminal, lines elsewhere."""
    if not sys.stdout.isatty():
        yield PlainProgress()
        return
    bar = BarProgress(title)
    with bar.progress:
        yield bar


def _losses(metrics: dict[str, float]) -> str:
    hidden = ("/exit", "/gradient")
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if not name.endswith(hidden))
