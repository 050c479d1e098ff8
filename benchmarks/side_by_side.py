"""What the kernel benchmarks share: calls timed in turn, what the machine can do at best, rows."""

from __future__ import annotations

import shlex
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fewstep.bench.record import Measured, Named, make_rows, origin
from fewstep.bench.rows import DENSE, append
from fewstep.bench.settings import Settings

Call = Callable[[], object]


def interleaved(
    functions: dict[str, Call], device: str, repeats: int, warmup: int = 3, before: Call | None = None
) -> dict[str, list[float]]:
    """Seconds of each function, called in turn ``repeats`` times after ``warmup`` rounds; `before` is not timed."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + warmup):
        for name, function in functions.items():
            if before:
                before()
            start = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def pair_ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios of pairs measured side by side."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of ten."""
    left, right = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    return 2 * 2048**3 / min(interleaved({"mm": lambda: left @ right}, device, 10)["mm"])


class Recorder:
    """Appends rows of a run to a file of results."""

    def __init__(self, task: str, path: Path, device: str, dtype: torch.dtype, params: dict[str, Any]) -> None:
        command = shlex.join(["python", *sys.argv])
        settings = Settings(repeats=1, threads=torch.get_num_threads(), results=path.parent, command=command)
        about = origin(settings, uuid.uuid4().hex[:12], "random", torch.device(device), str(dtype)[6:])
        self.path, self.params = path, params
        self.head = {"task": task, "model": "random-qkv", **about}

    def add(
        self, times: dict[str, list[float]], counts: dict[str, Sequence[dict[str, float]]], baseline: str, **params: Any
    ) -> None:
        """Write the rows of arms timed in turn, the one named ``dense`` first; `counts` by arm, one for each repeat."""
        found = {
            name: [
                Measured(seconds={"attention": second}, quality={}, counts=dict(count), samples=())
                for second, count in zip(seconds, counts.get(name, [{}] * len(seconds)), strict=True)
            ]
            for name, seconds in times.items()
        }
        arms = {name: Named(name, {}) for name in times if name != DENSE}
        head = {**self.head, "params": {**self.params, **params}}
        append(make_rows(head, arms, found, baseline), self.path)
