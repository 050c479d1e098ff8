"""What a benchmark shows while it runs: a live table and a bar with an ETA on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..bench.settings import Event


class Watcher:
    """Prints one line for each event."""

    def __init__(self) -> None:
        self.red: list[str] = []
        """Arms whose gate is red."""

    def __call__(self, event: Event) -> None:
        if event.kind == "gate" and not event.ok:
            self.red.append(event.arm)
        self.show(event)

    def show(self, event: Event) -> None:
        """Print `event`."""
        print(f"[{event.done}/{event.total}] {event.text}", flush=True)


class LiveWatcher(Watcher):
    """A table of the newest times by arm above a progress bar; everything else is printed above both."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        super().__init__()
        self.title = title
        self.newest: dict[str, str] = {}
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Remaining()
        )
        self.bar = self.progress.add_task("running", total=None)
        self.live = Live(console=Console(), get_renderable=self._render, refresh_per_second=1, transient=True)

    def show(self, event: Event) -> None:
        self.progress.update(self.bar, total=event.total, completed=event.done)
        if event.kind == "measured":
            self.newest[event.arm] = event.text
        elif event.kind != "warm-up":
            self.live.console.print(event.text, markup=False, highlight=False)
        self.live.refresh()

    def _render(self):
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.title, title_justify="left", title_style="bold", box=None, show_header=False)
        for text in self.newest.values():
            table.add_row(Text(text))
        return Group(table, self.progress)


@contextmanager
def watching(title: str) -> Iterator[Watcher]:
    """A watcher that suits where stdout goes."""
    if not sys.stdout.isatty():
        yield Watcher()
        return
    watcher = LiveWatcher(title)
    with watcher.live:
        yield watcher
