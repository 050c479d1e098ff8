"""Several calls beside each other, each in a process forked from an item: compilers keep one core busy each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import wait
from typing import Any

import torch
from fewstep.kernels.ahead import one_line


def answers(calls: Mapping[str, Callable[[], Any]], together: int) -> Iterator[tuple[str, Any, str | None]]:
    """Name, result and error of each call, in the order in which they end; at most so many run `together`.

    Raises:
        RuntimeError: the device is in use by this process already: forked ones could not use it.
    """
    if torch.cuda.is_initialized():
        raise RuntimeError("forked processes cannot use a device that is in use here")
    processes, waiting, running = multiprocessing.get_context("fork"), list(calls.items()), {}
    while waiting or running:
        while waiting and len(running) < together:
            name, call = waiting.pop(0)
            receiver, sender = processes.Pipe(duplex=False)
            process = processes.Process(target=_send, args=(call, sender))
            process.start()
            sender.close()
            running[receiver] = name, process
        for receiver in wait(list(running)):
            name, process = running.pop(receiver)
            try:
                result, error = receiver.recv()
            except EOFError:
                process.join()
                result, error = None, f"its process died with exit code {process.exitcode}"
            process.join()
            yield name, result, error


def _send(call: Callable[[], Any], reply: Any) -> None:
    try:
        sent = call(), None
    except BaseException as error:  # whatever happens on a card, the others go on
        sent = None, one_line(error)  # type: ignore[arg-type]
    reply.send(sent)
    reply.close()
