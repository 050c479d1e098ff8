"""Copies between host and device during the computation, and cache layers that stream their tokens in by them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from fewstep.families.kv_cache import GrowingLayer
from jaxtyping import Int
from torch import Tensor

Wait = Callable[[], object]
"""Returns when the copy may be used."""


class ThreadCopier:
    """One worker thread, for models that run on the CPU. Copies run in the order they were started."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fewstep-copier")

    def start(self, copy: Callable[[], None]) -> Wait:
        """Queue `copy`; waiting raises the error that it raised."""
        inference = torch.is_inference_mode_enabled()  # belongs to a thread: the worker has to follow the caller
        return self._worker.submit(torch.inference_mode(inference)(copy)).result


class StreamCopier:
    """A CUDA stream of its own; waiting makes the compute stream wait, not the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, copy: Callable[[], None]) -> Wait:
        """Enqueue `copy` after all computation so far, which may still read the slots that it overwrites."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copy()
        done = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self._device).wait_event(done)


Copier = ThreadCopier | StreamCopier


def copier_for(device: torch.device) -> Copier:
    """The copier for models on `device`."""
    return StreamCopier(device) if device.type == "cuda" else ThreadCopier()


class StreamedLayer(GrowingLayer):
    """A layer whose tokens lie on the host; attention reads a copy that arrives while the layer before it runs.

    Args:
        filled: a layer after the prefill, on the device.
        copier: runs the copies.
    """

    def __init__(self, filled: GrowingLayer, copier: Copier) -> None:
        super().__init__()
        self.following: StreamedLayer = self
        """The streamed layer that is read next."""
        self._copier, self._reader = copier, filled.device
        self._arriving: tuple[tuple[Tensor, ...], Wait] | None = None
        self.dtype, self.device, self.is_initialized = filled.dtype, torch.device("cpu"), True
        self.replace(filled.keys, filled.values)

    def fetch(self) -> None:
        """Start a copy of all tokens to the device, with spare room."""
        self._arriving = self._started()

    def _started(self) -> tuple[tuple[Tensor, ...], Wait]:
        copies, length = tuple(torch.empty_like(p, device=self._reader) for p in self._buffers), self.keys.shape[2]
        pairs = list(zip(copies, self._buffers, strict=True))

        def copy() -> None:
            for there, here in pairs:
                there[:, :, :length].copy_(here[:, :, :length], non_blocking=True)
                if there.is_cuda:  # the cache may be dropped while the copy runs
                    there.record_stream(torch.cuda.current_stream(there.device))

        return copies, self._copier.start(copy)

    def arrived(self) -> tuple[Tensor, ...]:
        """The copy on the device, complete; later calls copy anew."""
        copies, wait = self._arriving or self._started()
        wait()
        self._arriving = None
        return copies

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append on the host and on the device, start the next layer's copy, return everything on the device."""
        copies, start = self.arrived(), self.keys.shape[2]
        super().update(key_states.cpu(), value_states.cpu())
        stop = self.keys.shape[2]
        if stop > copies[0].shape[2]:
            copies = self.arrived()
        for copy, states in zip(copies, (key_states, value_states), strict=True):
            copy[:, :, start:stop] = states
        self.following.fetch()
        keys, values = (copy[:, :, :stop] for copy in copies)
        return keys, values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Hold exactly these, pinned where a GPU will read them."""
        super().replace(keys, values)
        if torch.cuda.is_available():
            self._buffers = tuple(part.pin_memory() for part in self._buffers)
            self._show(keys.shape[2])

    @property
    def kv_bytes(self) -> int:
        """Bytes of the copy that is on its way."""
        return sum(copy.nbytes for copy in self._arriving[0]) if self._arriving else 0

    @property
    def host_bytes(self) -> int:
        """Bytes of its tokens on the host."""
        return super().kv_bytes

    def select_rows(self, rows: Int[Tensor, " r"]) -> None:
        """Keep these rows of the batch, in this order."""
        if self._arriving is not None:
            self.arrived()
        super().select_rows(rows)
