"""Shared by the kernel benchmarks: options, calls timed in turn, the peak of the machine, rows."""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fewstep import FewstepError
from fewstep.bench.record import ArmConfig, Measurement, make_rows
from fewstep.bench.rows import DENSE, append
from fewstep.bench.settings import Settings

Call = Callable[[], object]


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--results", type=Path, default=Path("results"))
    made.add_argument("--allow-dirty", action="store_true", help="measure a changed checkout; the rows are marked")
    return made


def prepared(options: argparse.Namespace) -> Settings:
    """Settings of a run with the options of `parser` and the threads that torch uses now.

    Raises:
        SystemExit: the checkout is dirty, and `options.allow_dirty` is not set.
        OSError: the results folder cannot be written.
    """
    settings = Settings(
        repeats=1,
        threads=torch.get_num_threads(),
        results=options.results,
        allow_dirty=options.allow_dirty,
        command=shlex.join(["python", *sys.argv]),
    )
    try:
        settings.prepare()
    except FewstepError as error:
        raise SystemExit(str(error)) from None
    return settings


def interleaved(
    functions: dict[str, Call], device: str, repeats: int, warmup: int = 3, before: Call | None = None
) -> dict[str, list[float]]:
    """Seconds of each function, called in turn ``repeats`` times after ``warmup`` rounds; `before` is not timed.

    On a GPU they are those of the device, between two events of its stream.
    """
    seconds = _device_seconds if device == "cuda" else _host_seconds
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + warmup):
        for name, function in functions.items():
            if before:
                before()
            took = seconds(function)
            if turn >= warmup:
                times[name].append(took)
    return times


def _host_seconds(function: Call) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _device_seconds(function: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def pair_ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios of pairs measured side by side."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of ten."""
    left, right = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    return 2 * 2048**3 / min(interleaved({"mm": lambda: left @ right}, device, 10)["mm"])


class Recorder:
    """Appends rows of a run to ``<task>.jsonl`` in the results folder."""

    def __init__(
        self, task: str, options: argparse.Namespace, device: str, dtype: torch.dtype, params: dict[str, Any]
    ) -> None:
        """Begin a run; `options` are those of `parser`, see `prepared` for the errors."""
        settings = prepared(options)
        self.path, self.params = options.results / f"{task}.jsonl", params
        run = settings.provenance("random", torch.device(device), str(dtype)[6:])
        self.head = {"task": task, "model": "random-qkv", "run": run}

    def add(
        self, times: dict[str, list[float]], counts: dict[str, Sequence[dict[str, float]]], baseline: str, **params: Any
    ) -> None:
        """Write the rows of arms timed in turn, the one named ``dense`` first; `counts` by arm, one for each repeat."""
        measurements = {
            name: [
                Measurement(seconds={"attention": second}, quality={}, counts=dict(count))
                for second, count in zip(seconds, counts.get(name, [{}] * len(seconds)), strict=True)
            ]
            for name, seconds in times.items()
        }
        arms = {name: ArmConfig(name, {}) for name in times if name != DENSE}
        head = {**self.head, "params": {**self.params, **params}}
        append(make_rows(head, arms, measurements, baseline), self.path)
