"""Threads, peak memory, device and dtype of a measurement."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import FewstepError

SAMPLE_EVERY = 0.01
"""Seconds between two looks at the resident memory; a sample costs some 20 microseconds."""


@contextlib.contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class PeakMemory:
    """Context manager; afterwards `value` is the largest memory seen inside, in bytes.

    On CUDA it is the largest amount that the allocator had handed out. Elsewhere it is the resident memory of the
    process, sampled in a thread, after the heap that earlier arms freed has been given back to the system.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.metric = "peak_cuda_bytes" if device.type == "cuda" else "peak_rss_bytes"
        self.value = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        _give_back()
        self._process = _psutil().Process()
        self._stop = threading.Event()
        self._sample()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.value = torch.cuda.max_memory_allocated(self.device)
            return
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY):
            self._sample()

    def _sample(self) -> None:
        self.value = max(self.value, self._process.memory_info().rss)


def _give_back() -> None:
    """Return freed heap pages to the system, else an arm would be charged for the memory of an earlier one."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise FewstepError("the benchmark needs psutil; install it with: pip install 'fewstep-core[bench]'") from error
    return psutil


def model_device(model: Any) -> torch.device:
    """Device of a module or a pipeline."""
    device = getattr(model, "device", None)
    return device if isinstance(device, torch.device) else next(model.parameters()).device


def model_dtype(model: Any) -> str:
    """Dtype of a module or a pipeline: ``float32``, ``bfloat16``, ..."""
    own = getattr(model, "dtype", None)
    dtype = own if isinstance(own, torch.dtype) else next(model.parameters()).dtype
    return str(dtype).removeprefix("torch.")
