"""What the benchmark holds still and what it watches: threads, peak memory, and the machine that it ran on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import subprocess
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import plugins
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

    On CUDA it is what the allocator handed out at once. Elsewhere it is the resident memory of the process, sampled in
    a thread, after what earlier arms freed has been given back to the system.
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
    """Return freed heap pages to the system, else an arm would be charged for what an earlier one used."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise FewstepError("the benchmark needs psutil; install it with: pip install 'fewstep-core[bench]'") from error
    return psutil


def model_device(model: Any) -> torch.device:
    """Where a module or a pipeline lives."""
    found = getattr(model, "device", None)
    return found if isinstance(found, torch.device) else next(model.parameters()).device


def model_dtype(model: Any) -> str:
    """``float32``, ``bfloat16``, ...: the dtype of a module or a pipeline."""
    found = getattr(model, "dtype", None)
    dtype = found if isinstance(found, torch.dtype) else next(model.parameters()).dtype
    return str(dtype).removeprefix("torch.")


def device_name(device: torch.device) -> str:
    """``NVIDIA H100 80GB HBM3``, ``AMD EPYC 7B13``, ...: the device as a person would name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python, of torch and its companions, and of every installed fewstep package."""
    ours = {"fewstep-core", *plugins.installed().distributions.values()}
    found = {"python": platform.python_version()}
    for name in (*sorted(ours), "torch", "transformers", "diffusers"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def commit(results: Path) -> str:
    """The commit of the current directory, ``+dirty`` where files differ from it; empty where there is no checkout.

    Rows that earlier runs left in `results` do not make a checkout dirty: they change nothing that is measured.
    """
    top, head = _git("rev-parse", "--show-toplevel"), _git("rev-parse", "HEAD")
    if not top or not head:
        return ""
    changed = _git("-C", top, "status", "--porcelain", "--untracked-files=all", "-z") or ""
    paths = [Path(top, entry[3:]) for entry in changed.split("\0") if entry]
    own = results.resolve()
    return head + ("+dirty" if any(not path.is_relative_to(own) for path in paths) else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip("\n")
