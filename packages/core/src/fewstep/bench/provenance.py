"""`Provenance`: the conditions of a run, which all of its rows share. Imports torch only to name a GPU."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from .. import plugins

if TYPE_CHECKING:
    import torch

DIRTY = "+dirty"
"""Ends the commit of a checkout whose files differ from it."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The conditions of one run: everything needed to trust its rows and to repeat them."""

    id: str
    """Shared by all rows measured side by side."""
    weights: str
    """``trained``, ``pretrained`` or ``random``."""
    device: str
    """Name of the processor or the GPU."""
    hardware: str
    """``cpu`` or ``cuda``; rows of the two never stand in one table."""
    dtype: str
    threads: int
    """CPU threads of torch."""
    versions: dict[str, str] = field(hash=False)
    commit: str
    """Head of the checkout, with ``+dirty`` where files differed from it; empty where there was no checkout."""
    date: str
    """ISO 8601; UTC where it names no time zone."""
    command: str

    def __post_init__(self) -> None:
        try:
            _ = self.time
        except (ValueError, TypeError) as error:
            raise ValueError(f"the date of run {self.id} is not ISO 8601: {self.date!r}") from error

    @property
    def time(self) -> datetime:
        """`date` with its time zone."""
        date = datetime.fromisoformat(self.date)
        return date if date.tzinfo else date.replace(tzinfo=UTC)

    @property
    def dirty(self) -> bool:
        """True where the commit does not hold the code that was measured."""
        return self.commit.endswith(DIRTY)


def commit(results: Path) -> str:
    """The commit of the current directory, ``+dirty`` where files differ from it; empty where there is no checkout.

    Rows that earlier runs left in `results` do not make a checkout dirty: they change nothing that is measured.
    """
    top, head = _git("rev-parse", "--show-toplevel"), _git("rev-parse", "HEAD")
    if not top or not head:
        return ""
    changed = _git("-C", top, "status", "--porcelain", "--no-renames", "--untracked-files=all", "-z") or ""
    paths = [Path(top, entry[3:]) for entry in changed.split("\0") if entry]
    own = results.resolve()
    return head + (DIRTY if any(not path.is_relative_to(own) for path in paths) else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip("\n")


def device_name(device: torch.device) -> str:
    """``NVIDIA H100 80GB HBM3``, ``AMD EPYC 7B13``, ...: the device as a person would name it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python, of torch and its companions, and of every installed fewstep package."""
    ours = {"fewstep-core", *plugins.installed().distributions.values()}
    installed = {"python": platform.python_version()}
    for name in (*sorted(ours), "torch", "transformers", "diffusers"):
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed
