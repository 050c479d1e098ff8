"""`Bench`: what an item measures with: sizes, checks, ceilings of the card, rows."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from fewstep.bench.provenance import Provenance
from fewstep.bench.record import ArmConfig, Measurement, make_rows
from fewstep.bench.rows import DENSE, Row, append
from fewstep.bench.settings import Settings
from fewstep.kernels import Kernel
from fewstep.kernels.ahead import one_line
from fewstep.kernels.check import numerics
from side_by_side import Call, interleaved

from .worker import SkipError

CHECKS, KERNELS, ITEMS = "gpu-checks", "gpu-kernels", "gpu-items"
"""Tasks of the rows, which name their files."""
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardSettings(Settings):
    """Settings whose runs name the driver too."""

    driver: str = ""

    def provenance(self, weights: str, device: torch.device, dtype: str) -> Provenance:
        """The conditions of a run that starts now."""
        made, known = super().provenance(weights, device, dtype), {"driver": self.driver} if self.driver else {}
        known |= {"cuda": torch.version.cuda} if torch.version.cuda else {}
        with contextlib.suppress(PackageNotFoundError):
            known["triton"] = version("triton")
        return dataclasses.replace(made, versions=made.versions | known)


class Bench:
    """Surroundings of one item: real sizes on a card, or tiny ones of the same code on the CPU."""

    def __init__(
        self, *, item: str, out: str, tiny: bool, driver: str, shared: bool, command: str, ends: float
    ) -> None:
        self.item, self.out, self.tiny, self.ends = item, Path(out), tiny, ends
        self.device = "cpu" if tiny else "cuda"
        self.dtype = torch.bfloat16
        self.shared = {"shared": True} if shared else {}
        known = {"results": self.out, "allow_dirty": True, "command": command, "driver": driver}
        self.settings = CardSettings(**known, **self.pick({}, {"threads": 1}))  # threads only slow tiny sizes down
        self.red: list[str] = []
        torch.set_num_threads(self.settings.threads)
        torch.manual_seed(0)

    def pick(self, real: T, tiny: T) -> T:
        """The first on a card, the second with ``--tiny``."""
        return tiny if self.tiny else real

    @property
    def left(self) -> float:
        """Seconds until this item is stopped."""
        return self.ends - time.time()

    @property
    def free(self) -> float:
        """GB of memory that the card has left; without one, plenty for tiny sizes."""
        return 8.0 if self.tiny else torch.cuda.mem_get_info()[0] / 1e9

    def randn(self, *shape: int) -> torch.Tensor:
        """Normal numbers on the device, in bf16."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def run(self, weights: str = "random", dtype: str = "bfloat16") -> Provenance:
        """The conditions of rows that are written now."""
        return self.settings.provenance(weights, torch.device(self.device), dtype)

    def check(self, what: str, wrong: str | None, **params: Any) -> bool:
        """Write the row of a check, which is green where nothing is `wrong`."""
        found = {"check": what, **({"wrong": wrong} if wrong else {}), **params, **self.shared}
        row = {"task": CHECKS, "model": "", "method": self.item, "metric": "passed", "unit": "", "params": found}
        append([Row(**row, value=float(not wrong), run=self.run())], self.out / f"{CHECKS}.jsonl")
        if wrong:
            self.red.append(f"{what}: {wrong}")
        return not wrong

    def note(self, what: str, reason: str) -> None:
        """Write the row of something that was left out, and why."""
        row = {"task": ITEMS, "model": "", "method": self.item, "metric": "left_out", "unit": "", "value": 1.0}
        params = {"what": what, "reason": reason, **self.shared}
        append([Row(**row, params=params, run=self.run())], self.out / f"{ITEMS}.jsonl")

    def gate(self, kernel: Kernel) -> str:
        """The backend of `kernel` here, after a check of its values.

        Raises:
            SkipError: it is wrong: nothing is timed.
        """
        backend = kernel.chosen_backend(self.device)
        result = numerics(kernel, backend, self.device)
        if not self.check(f"{kernel.name} equals its specification", None if result.ok else result.detail):
            raise SkipError(f"{kernel.name} is wrong on this device, nothing is timed: {result.detail}")
        return backend

    @cached_property
    def ceilings(self) -> tuple[float, float]:
        """Bytes and FLOPs a second that this device reaches: a large copy, and a large matrix product in bf16."""
        size, side = self.pick((1 << 30, 8192), (1 << 20, 128))
        source = torch.empty(size, dtype=torch.uint8, device=self.device)
        there, (left, right) = torch.empty_like(source), (self.randn(side, side) for _ in range(2))
        calls: dict[str, Call] = {"copy": lambda: there.copy_(source), "product": lambda: left @ right}
        best = {name: min(times) for name, times in interleaved(calls, self.device, 10).items()}
        return 2 * size / best["copy"], 2 * side**3 / best["product"]

    def floor(self, flops: float, moved: float) -> float:
        """Seconds below which this device cannot do so many operations and move so many bytes."""
        bandwidth, peak = self.ceilings
        return max(moved / bandwidth, flops / peak)

    def possible(self, calls: Mapping[str, Call]) -> dict[str, Call]:
        """Those of the calls that run on this device; the others are noted with their error."""
        able = {}
        for name, call in calls.items():
            try:
                call()
                able[name] = call
            except Exception as error:  # a baseline may refuse a shape or a card in any way
                self.note(name, one_line(error))
        return able

    def compare(
        self, phase: str, kernel: str, calls: Mapping[str, Call], dense: Sequence[str], floors: Mapping[str, float],
        repeats: int = 10, **params: Any,
    ) -> None:  # fmt: skip
        """Time calls in turn and write their rows: seconds, ratio to the fastest `dense` one, time over the floor.

        Args:
            phase: name of the time: ``forward``, ``backward``.
            kernel: the operation, which stands for the model in the rows.
            calls: by label; those that cannot run here are left out, with a note.
            dense: labels of the baselines.
            floors: least seconds, by label.
            repeats: rounds that count.
            params: sizes.
        """
        able = self.possible(calls)
        rivals = [name for name in dense if name in able]
        if not rivals or len(able) == len(rivals):
            return self.note(f"{kernel} {phase}", "nothing to compare runs here")
        flush = torch.empty(self.pick(256 << 20, 1 << 10), dtype=torch.uint8, device=self.device)
        times = interleaved(able, self.device, self.pick(repeats, 1), self.pick(2, 0), before=flush.zero_)
        best = min(rivals, key=lambda name: statistics.median(times[name]))
        measured = {
            DENSE if name == best else name: [
                Measurement(seconds={phase: s}, quality={}, counts={f"{phase}_over_floor": s / floors[name]})
                for s in took
            ]
            for name, took in times.items()
        }
        bandwidth, peak = self.ceilings
        sizes = {**params, "kernel": kernel, "ceiling_gb_s": bandwidth / 1e9, "ceiling_tflop_s": peak / 1e12}
        head = {"task": KERNELS, "model": kernel, "params": sizes | self.shared, "run": self.run()}
        arms = {name: ArmConfig(name, {}) for name in measured if name != DENSE}
        ordered = {DENSE: measured.pop(DENSE), **measured}
        append(make_rows(head, arms, ordered, f"{best}-bfloat16"), self.out / f"{KERNELS}.jsonl")


def differs(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    """What is wrong with a result in bf16, as a share of the largest number; None where rounding explains it."""
    error = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
    return None if error < 2e-2 else f"differs by {error:.1%} of the largest"
