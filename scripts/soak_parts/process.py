"""Command lines in processes forked from one warm process, with bounded memory and time."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from fewstep.testing.cli import PRELOADED

MEMORY = 6 << 30
"""Bytes of address space that one command may take."""
SECONDS = 120
"""Longest that one command may take."""
Outcome = Counter[str]
CONTEXT: Any = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Start the warm process with nothing that goes to a network or draws a bar."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    CONTEXT.set_forkserver_preload(PRELOADED)


def enter(folder: Path, log: Path, cache: str) -> None:
    """Bound this (forked) process's memory, and send what it prints to `log`."""
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["FEWSTEP_CACHE"] = cache
    os.chdir(folder)


def run(words: list[str], folder: Path, *, kill_after: float | None = None) -> tuple[int | None, str]:
    """Exit code (None where it was killed or hung) and output of one command."""
    log = folder / "output.log"
    process = CONTEXT.Process(target=_command, args=(words, folder, log))
    process.start()
    process.join(SECONDS if kill_after is None else kill_after)
    hung = process.is_alive()
    if hung:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return None if hung else process.exitcode, text


def _command(words: list[str], folder: Path, log: Path) -> None:
    enter(folder, log, str(folder / "cache"))
    from fewstep.cli import main

    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
