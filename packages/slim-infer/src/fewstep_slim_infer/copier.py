"""Copies between host and device that run beside the computation."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

Wait = Callable[[], object]
"""Returns when the copy may be used."""


class Copier(Protocol):
    """Starts a copy and says how to wait for it. Copies of one copier run in the order they were started."""

    def start(self, copy: Callable[[], None]) -> Wait:
        """Run `copy` now or soon; the result waits for it."""


class InlineCopier:
    """Copies at once: deterministic, and the yardstick of the others."""

    def start(self, copy: Callable[[], None]) -> Wait:
        """Run `copy` before returning."""
        copy()
        return lambda: None


class ThreadCopier:
    """One worker thread, for models that run on the CPU."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fewstep-copier")

    def start(self, copy: Callable[[], None]) -> Wait:
        """Queue `copy`; waiting raises what it raised."""
        inference = torch.is_inference_mode_enabled()  # belongs to a thread: the worker has to follow the caller

        def run() -> None:
            with torch.inference_mode(inference):
                copy()

        return self._worker.submit(run).result


class StreamCopier:
    """A CUDA stream of its own; waiting makes the compute stream wait, not the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, copy: Callable[[], None]) -> Wait:
        """Enqueue `copy` after all computation so far, which may still read the slots that it overwrites."""
        compute = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(compute)
        with torch.cuda.stream(self._stream):
            copy()
        done = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self._device).wait_event(done)


def copier_for(device: torch.device) -> Copier:
    """The copier for models on `device`."""
    return StreamCopier(device) if device.type == "cuda" else ThreadCopier()
