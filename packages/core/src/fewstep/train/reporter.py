"""Observers of a training run, and the signals that stop it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Reporter(Protocol):
    """Shows the progress of a run; called on the main rank only."""

    def step(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Report that `done` of `total` steps are over."""

    def say(self, text: str) -> None:
        """Report a checkpoint, a sample grid or the end in one line."""


class NullReporter:
    """No-op reporter."""

    def step(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""


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
