"""Progress of long work: a bar below scrolling lines on a terminal, plain lines when piped; count and ETA first."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..bench.settings import Event

EVERY = 5.0
"""Seconds between two plain lines of training steps, at least."""
FIGURES = 2
"""Losses that are shown; the log of a run has all."""


class PlainProgress:
    """Lines on stdout."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.start, self.first, self.said = clock, clock(), 0, -EVERY

    def step(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Print the first training step that is run, the last, and one every few seconds between them."""
        self.line(done, total, _losses(metrics))

    def line(self, done: int, total: int | None, text: str) -> None:
        """Print the first piece of work, the last, and one every few seconds between them; no total: endless."""
        now = self.clock()
        if not self.first:
            self.start, self.first = now, done
        if done in (self.first, total) or now - self.said >= EVERY:
            self.said = now
            self.say(f"{self._place(done, total, self.first)} {text}")

    def event(self, event: Event) -> None:
        """Print a step of a measurement with the number of runs that are over."""
        self.say(f"{self._place(event.done, event.total, 0)} {event.text}")

    def say(self, text: str) -> None:
        """Print `text`."""
        print(text, flush=True)

    def _place(self, done: int, total: int | None, first: int) -> str:
        """``[3/12] 25%, 1:30 left:``; the count alone at the end, before anything was timed, and without an end."""
        if total is None:
            return f"[{done}]"
        if not total > done > first:
            return f"[{done}/{total}]"
        left = (self.clock() - self.start) / (done - first) * (total - done)
        return f"[{done}/{total}] {100 * done // total}%, {_clock(left)} left:"


class BarProgress(PlainProgress):
    """A bar; everything that is said scrolls above it."""

    def __init__(self, title: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining
        from rich.table import Column

        super().__init__()
        last = TextColumn("{task.fields[losses]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
        shown = MofNCompleteColumn(), TaskProgressColumn(), Remaining(compact=True), BarColumn(bar_width=12), last
        self.progress = Progress(*shown, refresh_per_second=2, expand=True)
        self.bar = self.progress.add_task(title, total=None, losses=title)

    def line(self, done: int, total: int | None, text: str) -> None:
        """Move the bar and show the newest text."""
        self.progress.update(self.bar, completed=done, total=total, losses=text)

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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _losses(metrics: dict[str, float]) -> str:
    hidden = ("/exit", "/gradient")
    shown = [f"{name} {value:.4g}" for name, value in metrics.items() if not name.endswith(hidden)]
    return ", ".join(shown[:FIGURES])
