"""One item in one process: started, waited for, killed at its cap; whatever becomes of it, there is an `Ended`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = ["torch", "transformers", "diffusers", "peft", "accelerate", "fewstep.bench.run", "fewstep.kernels.check"]
"""Imported once, in the process that all others are forked from; none of these touches the device."""


class SkipError(Exception):
    """An item has found out that it does not fit here; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The end of an item."""

    outcome: str
    """``done``, ``wrong`` (a check is red), ``skipped``, ``out of memory``, ``stopped`` (at its cap) or ``crashed``."""
    reason: str = ""
    """One line; empty where it is done."""
    seconds: float = 0.0


def context(method: str = "forkserver") -> Any:
    """Way to make processes. Forked ones need no import of torch, which takes ten seconds; ``spawn`` always works."""
    made = multiprocessing.get_context(method)
    if method == "forkserver":
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # counting devices must not start the driver
        made.set_forkserver_preload(PRELOADED)
    return made


def answer(processes: Any, function: Any, seconds: float) -> Any:
    """What `function` sends through the connection that it is given, from a process of its own; None if nothing."""
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=function, args=(sender,))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else None
    except EOFError:
        return None
    finally:
        _end(process)


def run(processes: Any, target: str, setup: dict[str, Any], log: Path, seconds: float) -> Ended:
    """Run ``target`` with a `Bench` of `setup`, its output in `log`, for at most so many seconds."""
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_work, args=(target, setup, str(log), sender))
    began = time.monotonic()
    process.start()
    sender.close()
    ended = None
    with contextlib.suppress(EOFError):
        ended = receiver.recv() if receiver.poll(seconds) else Ended(outcome="stopped", reason=f"at {seconds:.0f} s")
    _end(process)
    if ended is None:  # it died without a word
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        ended = Ended(outcome="crashed", reason=how)
    return Ended(outcome=ended.outcome, reason=ended.reason, seconds=time.monotonic() - began)


def _end(process: Any) -> None:
    """Wait for a process that has answered; kill it and what it started where it does not end."""
    process.join(2)
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has not made its group yet
            process.kill()
        process.join()


def _work(target: str, setup: dict[str, Any], log: str, reply: Any) -> None:
    os.setsid()
    with open(log, "w", encoding="utf-8") as file:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            os.dup2(file.fileno(), number)
    reply.send(_ended(target, setup))
    reply.close()


def _ended(target: str, setup: dict[str, Any]) -> Ended:
    import torch
    from fewstep.cards import import_target
    from fewstep.kernels.ahead import one_line

    from .bench import Bench

    try:
        bench = Bench(**setup)
        import_target(target)(bench)
    except SkipError as reason:
        return Ended(outcome="skipped", reason=str(reason))
    except BaseException as error:  # an item may fail in any way, and the next one runs all the same
        traceback.print_exc()
        memory = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
        return Ended(outcome="out of memory" if memory else "crashed", reason=one_line(error))  # type: ignore[arg-type]
    if bench.red:
        return Ended(outcome="wrong", reason="; ".join(bench.red)[:300])
    return Ended(outcome="done")
