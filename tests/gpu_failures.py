"""Items of ``benchmarks/gpu.py`` that end in every way, for `test_gpu`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import torch
from gpu_items.worker import SkipError


def dies(bench):
    """Write a row, then die without a word."""
    bench.check("one", None)
    os.abort()


def raises(bench):
    """Raise an error that nobody expects."""
    1 / 0  # noqa: B018


def is_wrong(bench):
    """Find something wrong."""
    bench.check("two and two", "5")


def fills_memory(bench):
    """Ask for more memory than there is."""
    torch.empty(1 << 50, dtype=torch.uint8)


def does_not_fit(bench):
    """Find out that this is not the place."""
    raise SkipError("too small a moon")


def is_right(bench):
    """Find nothing wrong."""
    bench.check("one", None)


def waits(bench):
    """Write a row, start a process, and wait for ever."""
    bench.check("one", None)
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    (bench.out / "child").write_text(str(child.pid))
    signal.pause()
