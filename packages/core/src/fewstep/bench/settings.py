"""`Settings` of a measurement, and the `Event` that reports its progress. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import FewstepError, check_least
from .provenance import DIRTY, Provenance, commit, device_name, versions

if TYPE_CHECKING:
    import torch


MOST_THREADS = 1024
"""Above it torch cannot make its threads on many machines."""


def available_cores() -> int:
    """Physical cores that this process may use: hyper-threads only slow matrix products down."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(ImportError):  # not needed just to use a method
        import psutil

        return min(allowed, psutil.cpu_count(logical=False) or allowed)
    return allowed


def check_threads(threads: int) -> None:
    """Refuse a number of CPU threads that torch cannot make.

    Raises:
        ValueError: it is below 1 or above `MOST_THREADS`.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads must be at least 1 and at most {MOST_THREADS}, found {threads}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all measurements share; the flags of ``fewstep bench``.

    Raises:
        ValueError: `repeats` or `threads` is out of range.
    """

    repeats: int = 3
    """Pairs of runs, each with inputs of its own, the same for every arm; of recipes, trainings from one seed each."""
    seed: int = 0
    """Seed of the first repeat; repeat r has seed + r."""
    threads: int = field(default_factory=available_cores)
    """CPU threads of torch."""
    results: Path = Path("results")
    """Rows go to <task>.jsonl in this folder, sample outputs to samples/."""
    allow_dirty: bool = False
    """Measure a checkout whose files differ from its commit; the rows are marked."""
    command: str = field(default_factory=lambda: shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    """Command that measures the same again."""

    def __post_init__(self) -> None:
        check_least(self, repeats=1)
        check_threads(self.threads)

    def prepare(self) -> None:
        """Check, before hours of measuring, that the rows will belong to a commit and can be written.

        Raises:
            FewstepError: files of the checkout differ from its commit, and `allow_dirty` is not set.
            OSError: the results folder cannot be made or written.
        """
        if not self.allow_dirty and (head := commit(self.results)).endswith(DIRTY):
            raise FewstepError(
                f"files of this checkout differ from commit {head[:7]}, so its rows could not be repeated: "
                "commit them first, or pass --allow-dirty, which marks the rows"
            )
        self.results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.results):
            pass

    def provenance(self, weights: str, device: torch.device, dtype: str) -> Provenance:
        """The conditions of a run that starts now, with an id of its own."""
        return Provenance(
            id=uuid.uuid4().hex[:12],
            weights=weights,
            device=device_name(device),
            hardware=device.type,
            dtype=dtype,
            threads=self.threads,
            versions=versions(),
            commit=commit(self.results),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=self.command,
        )


@dataclass(frozen=True, kw_only=True)
class Event:
    """A step of a measurement, for the person who watches it."""

    kind: Literal["warm-up", "gate", "measured", "note", "written"]
    text: str
    """One line."""
    done: int
    """Runs of the task that are over, of `total`."""
    total: int
    arm: str = ""
    ok: bool = True
    """False for a red gate."""
