"""Who follows a run, and how it is asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Watch(Protocol):
    """Who follows a run; called on the first rank only."""

    def step(self, done: int, total: int, figures: dict[str, float]) -> None:
        """A step is over; `done` of `total` are."""

    def say(self, text: str) -> None:
        """Something worth a line: a checkpoint, a sample sheet, the end."""


class Silent:
    """Follows without a word."""

    def step(self, done: int, total: int, figures: dict[str, float]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one interrupts at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield seen
        return

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
