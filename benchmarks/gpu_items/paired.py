"""Whole models: a task on the unchanged model and on methods in turn, which may run out of memory one by one."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Mapping
from typing import Any

import torch
from fewstep.bench.record import ArmConfig, Measurement, config, make_rows, measurement, plain
from fewstep.bench.rows import DENSE, append
from fewstep.bench.task import Outcome
from fewstep.bench.timing import PeakMemory
from fewstep.contract import Loaded
from fewstep.kernels.ahead import one_line

from .bench import Bench

ALIKE = 0.98
"""Least cosine between outputs at the identity setting and the unchanged model's: in bf16, some 40 random layers carry
rounding to a few percent of single numbers, and flip experts that are nearly tied."""


def paired(
    bench: Bench, loaded: Loaded, task: Any, task_name: str, methods: Mapping[str, Any], *, repeats: int = 2,
    gated: bool = True,
) -> None:  # fmt: skip
    """Measure and write rows: after a small run of each, as many rounds as there is time for.

    Args:
        bench: of the item.
        loaded: a model with random weights.
        task: has ``run`` and ``small``; the evidence of the latter is compared at the identity setting.
        task_name: names the file of the rows.
        methods: by label.
        repeats: rounds that are counted, at most.
        gated: compare at the identity setting; False where outputs are choices that rounding flips.
    """
    rounds = Rounds(bench, loaded, {DENSE: None, **methods})
    small = task.small()
    red = {label for label in methods if gated and rounds.identity_differs(label, small)}
    for label in rounds.arms.copy():
        rounds.measure(label, small, 0, counted=False)
    for repeat in range(bench.pick(repeats, 1)):
        before = bench.left
        for label in rounds.arms.copy():
            rounds.measure(label, task, repeat, counted=True)
        if bench.left < 1.3 * (before - bench.left):
            break
    if not rounds.taken[DENSE]:
        return bench.note(task_name, "the unchanged model was not measured, so there is nothing to compare with")
    params = {**plain(dataclasses.asdict(task)), "repeats": len(rounds.taken[DENSE]), **bench.shared}
    head = {"task": task_name, "model": loaded.name, "params": params, "run": bench.run()}
    arms = {label: ArmConfig(method.name, config(method)) for label, method in methods.items()}
    taken = {label: runs for label, runs in rounds.taken.items() if runs}
    append(make_rows(head, arms, taken, f"{DENSE}-bfloat16", red=red), bench.out / f"{task_name}.jsonl")


class Rounds:
    """The arms that still run, and what was measured of each."""

    def __init__(self, bench: Bench, loaded: Loaded, arms: Mapping[str, Any]) -> None:
        self.bench, self.loaded, self.arms = bench, loaded, dict(arms)
        self.taken: dict[str, list[Measurement]] = {label: [] for label in arms}

    def measure(self, label: str, task: Any, repeat: int, *, counted: bool) -> None:
        """Run one arm; it drops out, with a note, where memory does not suffice."""
        peak = PeakMemory(torch.device(self.bench.device))
        outcome, full = None, ""
        try:
            with peak:
                outcome = self.once(self.arms[label], task, repeat)
        except torch.OutOfMemoryError as error:
            full = one_line(error)
        if outcome is None:  # out of the handler, whose traceback holds what filled the memory
            del self.arms[label]
            gc.collect()
            torch.cuda.empty_cache()
            return self.bench.note(label, full)
        if counted:
            where, memory = f"{label}, repeat {repeat + 1}", {peak.metric: float(peak.value)}
            self.taken[label].append(measurement(outcome, {}, where, **memory))

    def identity_differs(self, label: str, task: Any) -> bool:
        """Check a method at its identity setting; True where it is red."""
        identity = self.arms[label].identity()
        if identity is None:
            return False
        one, other = (self.once(method, task, 0).evidence.flatten().double() for method in (identity, None))
        alike = float(torch.nn.functional.cosine_similarity(one, other, 0)) if one.shape == other.shape else 0.0
        wrong = None if alike >= ALIKE else f"cosine {alike:.4f}"
        return not self.bench.check(f"{label} at its identity setting on {self.loaded.name}", wrong, cosine=alike)

    def once(self, method: Any, task: Any, repeat: int) -> Outcome:
        """One run of a task; inputs and chance are the same for every arm."""
        with method.apply(self.loaded.model) if method else contextlib.nullcontext():
            torch.manual_seed(repeat)
            return task.run(self.loaded, torch.Generator().manual_seed(repeat))
