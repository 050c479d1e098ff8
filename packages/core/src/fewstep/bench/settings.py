"""How to measure, and what is told meanwhile. Imports no torch, so that wrong flags are answered at once."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


def available_cores() -> int:
    """Physical cores that this process may use: hyper-threads only slow matrix products down."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(ImportError):  # not needed just to use a method
        import psutil

        return min(allowed, psutil.cpu_count(logical=False) or allowed)
    return allowed


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure, whatever is measured."""

    repeats: int = 3
    """Pairs; each has inputs of its own, the same for every arm."""
    seed: int = 0
    """Of the first repeat; repeat r has seed + r."""
    threads: int = field(default_factory=available_cores)
    """CPU threads of torch."""
    results: Path = Path("results")
    """Rows go to <task>.jsonl in this folder, sample outputs to samples/."""
    command: str = field(default_factory=lambda: shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    """What to type to measure it again."""

    def __post_init__(self) -> None:
        for name in ("repeats", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")

    def prepare(self) -> None:
        """Make the results folder and try to write to it: hours of measuring must not end in "read-only file system".

        Raises:
            OSError: it cannot be made or written.
        """
        self.results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.results):
            pass


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that a person who watches the benchmark wants to know."""

    kind: Literal["warm-up", "gate", "measured", "note", "written"]
    text: str
    """One line."""
    done: int
    """Runs of the task that are over, of `total`."""
    total: int
    arm: str = ""
    ok: bool = True
    """False for a red gate."""
