"""The paired benchmark: warm-up and correctness gate, then the unchanged model and the methods in turn."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from ..contract import Loaded
from ..method import Method
from . import gate, timing
from .record import ArmConfig, Measurement, config, measurement
from .rows import DENSE, Row
from .session import Session, Watch
from .settings import Settings
from .task import Outcome, Task


def bench(
    loaded: Loaded,
    arms: dict[str, Method],
    task: Task,
    task_name: str,
    settings: Settings,
    watch: Watch = lambda event: None,
) -> list[Row]:
    """Measure `arms` (by label) against the unchanged model, side by side in this process; append the rows to a file.

    Ctrl-C after the first finished pair records the finished pairs before ``KeyboardInterrupt`` goes on.

    Raises:
        FewstepError: the checkout is dirty and the settings do not allow it, a time or a quality metric is not finite,
            or a method cannot be applied; nothing is recorded.
        OSError: the results folder cannot be written; found out before anything is run.
    """
    settings.prepare()
    with timing.fixed_threads(settings.threads):
        session = _MethodSession(loaded, arms, task, task_name, settings, watch)
        session.warm_up()
        return session.run()


class _MethodSession(Session):
    def __init__(self, loaded: Loaded, methods: dict[str, Method], task: Any, name: str, settings: Settings, watch):
        self.loaded, self.methods = loaded, methods
        self.device, self.dtype = timing.model_device(loaded.model), timing.model_dtype(loaded.model)
        provenance = settings.provenance(loaded.weights, self.device, self.dtype)
        arms = {label: ArmConfig(method.name, config(method, loaded.name)) for label, method in methods.items()}
        super().__init__(arms, task, (name, loaded.name), settings, provenance, watch)
        attention = getattr(getattr(loaded.model, "config", None), "_attn_implementation", None) or "eager"
        self.dense = f"{DENSE}-{attention}-{self.dtype}"
        self.red: set[str] = set()
        identities = sum(method.identity() is not None for method in methods.values())
        self.total = 1 + len(methods) + identities + settings.repeats * (1 + len(methods))

    def warm_up(self) -> None:
        if self.loaded.weights == "random":
            self.tell("note", f"{self.loaded.name} has random weights: no quality metric is reported")
        small = self.task.small()
        dense = self._once(small, None, 0)
        self.tell("warm-up", "warm-up: dense", arm=DENSE)
        for label, method in self.methods.items():
            if (identity := method.identity()) is not None:
                wrong = gate.difference(self._once(small, identity, 0), dense, self.dtype)
                if wrong:
                    self.red.add(label)
                said = f"RED ({wrong}): no speed-up is reported for it" if wrong else "green"
                self.tell("gate", f"gate: {label} at its identity setting equals dense: {said}", label, ok=not wrong)
            self._once(small, method, 0)
            self.tell("warm-up", f"warm-up: {label}", arm=label)

    def repeat(self, repeat: int) -> None:
        dense = self._measure(DENSE, None, repeat, None)
        for label, method in self.methods.items():
            self._measure(label, method, repeat, dense)

    def finished(self) -> dict[str, list[Measurement]]:
        pairs = max((len(self.measurements[label]) for label in self.arms), default=len(self.measurements[DENSE]))
        return {label: runs[:pairs] for label, runs in self.measurements.items() if runs[:pairs]}

    def ratios(self) -> dict[str, Any]:
        return {"red": self.red, "extra_baselines": getattr(self.task, "extra_baselines", None)}

    def _measure(self, label: str, method: Method | None, repeat: int, dense: Outcome | None) -> Outcome:
        with timing.PeakMemory(self.device) as peak:
            outcome = self._once(self.task, method, repeat)
        quality: dict[str, float] = {}
        if self.loaded.weights != "random":
            quality = {**outcome.quality, **(self.task.compare(outcome, dense) if dense else {})}
        where = f"{self.task_name}, {label}, repeat {repeat + 1}"
        self.measurements[label].append(measurement(outcome, quality, where, **{peak.metric: float(peak.value)}))
        self.tell("measured", f"repeat {repeat + 1}: {label}: {self._summary(label)}", arm=label)
        return outcome

    def _once(self, task: Any, method: Method | None, repeat: int) -> Outcome:
        seed = self.settings.seed + repeat
        cuda = [self.device] if self.device.type == "cuda" else []
        applied = method.apply(self.loaded.model) if method else contextlib.nullcontext()
        with torch.random.fork_rng(devices=cuda), applied:
            torch.manual_seed(seed)  # for models that sample: the same numbers in each arm
            outcome = task.run(self.loaded, torch.Generator().manual_seed(seed))
        self.done += 1
        return outcome

    def _summary(self, label: str) -> str:
        """``ttft 0.48 s, 1.79x``: the newest times of an arm, with the ratio unless its gate is red."""
        runs, dense = self.measurements[label], self.measurements[DENSE]
        parts = []
        for name, value in runs[-1].seconds.items():
            other = dense[len(runs) - 1].seconds.get(name)
            paired = other is not None and label != DENSE and label not in self.red
            parts.append(f"{name} {value:.3g} s" + (f" {other / value:.2f}x" if paired else ""))
        return ", ".join(parts)
