"""Run the command line in processes forked from one warm process: each is fresh, none imports torch again."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PRELOADED = ["torch", "transformers", "diffusers", "peft", "fewstep.testing.cli", "fewstep.cli"]
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
"""Read by libraries when they are imported, so set before that; the command line sets the same without a terminal."""


def run_command_line(
    words: Sequence[str | Path], folder: Path, *, env: Mapping[str, str] | None = None, sites: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    """Run ``fewstep WORDS`` in a process of its own; output goes to files, as when piped.

    Args:
        words: verb and arguments.
        folder: working directory.
        env: environment variables that are set; others are those of this process, without ``FEWSTEP_*``.
        sites: folders with further installed distributions.
    """
    context = _forkserver()
    with tempfile.TemporaryDirectory() as outputs:
        out, err = Path(outputs, "out"), Path(outputs, "err")
        given = [str(word) for word in words]
        process = context.Process(
            target=_main, args=(given, str(folder), dict(env or {}), [str(site) for site in sites], str(out), str(err))
        )
        process.start()
        process.join()
        texts = [file.read_text(encoding="utf-8", errors="replace") if file.exists() else "" for file in (out, err)]
        return subprocess.CompletedProcess(given, process.exitcode or 0, *texts)


def _forkserver() -> Any:
    context = multiprocessing.get_context("forkserver")
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)
    try:
        context.set_forkserver_preload(PRELOADED)
        multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


def _main(words: list[str], folder: str, env: dict[str, str], sites: list[str], out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    for name in [name for name in os.environ if name.startswith("FEWSTEP_")]:
        del os.environ[name]
    os.environ |= env
    sys.path[:0] = sites
    os.chdir(folder)
    sys.argv = ["fewstep", *words]
    code: Any = 1
    try:
        runpy.run_module("fewstep", run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no clean-up of the process that this one was forked from
