"""The paired benchmark: warm-up and correctness gate, then the unchanged model and the methods in turn."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ..loaders import Loaded
from ..method import Method
from . import gate, timing
from .record import ArmConfig, Measurement, config, make_rows, measurement, plain
from .rows import DENSE, Row, append
from .samples import FOLDER, write_samples
from .settings import Event, Settings
from .task import Outcome, Task


def bench(
    loaded: Loaded,
    arms: dict[str, Method],
    task: Task,
    task_name: str,
    settings: Settings,
    watch: Callable[[Event], None] = lambda event: None,
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
        return _Bench(loaded, arms, task, task_name, settings, watch).run()


class _Bench:
    def __init__(self, loaded: Loaded, arms: dict, task: Any, task_name: str, settings: Settings, watch: Callable):
        self.loaded, self.arms, self.task, self.task_name = loaded, arms, task, task_name
        self.settings, self.watch = settings, watch
        self.device, self.dtype = timing.model_device(loaded.model), timing.model_dtype(loaded.model)
        self.provenance = settings.provenance(loaded.weights, self.device, self.dtype)
        self.measurements: dict[str, list[Measurement]] = {DENSE: [], **{label: [] for label in arms}}
        self.red: set[str] = set()
        self.done = 0
        identities = sum(method.identity() is not None for method in arms.values())
        self.total = 1 + len(arms) + identities + settings.repeats * (1 + len(arms))

    def run(self) -> list[Row]:
        if self.loaded.weights == "random":
            self._tell("note", f"{self.loaded.name} has random weights: no quality metric is reported")
        self._warm_up()
        try:
            for repeat in range(self.settings.repeats):
                self._pair(repeat)
        except KeyboardInterrupt:
            if any(self.measurements[label] for label in self.arms):
                self._write()
            raise
        return self._write()

    def _warm_up(self) -> None:
        small = self.task.small()
        dense = self._once(small, None, 0)
        self._tell("warm-up", "warm-up: dense", arm=DENSE)
        for label, method in self.arms.items():
            if (identity := method.identity()) is not None:
                wrong = gate.difference(self._once(small, identity, 0), dense, self.dtype)
                if wrong:
                    self.red.add(label)
                said = f"RED ({wrong}): no speed-up is reported for it" if wrong else "green"
                self._tell("gate", f"gate: {label} at its identity setting equals dense: {said}", label, ok=not wrong)
            self._once(small, method, 0)
            self._tell("warm-up", f"warm-up: {label}", arm=label)

    def _pair(self, repeat: int) -> None:
        dense = self._measure(DENSE, None, repeat, None)
        for label, method in self.arms.items():
            self._measure(label, method, repeat, dense)

    def _measure(self, label: str, method: Method | None, repeat: int, dense: Outcome | None) -> Outcome:
        with timing.PeakMemory(self.device) as peak:
            outcome = self._once(self.task, method, repeat)
        quality: dict[str, float] = {}
        if self.loaded.weights != "random":
            quality = {**outcome.quality, **(self.task.compare(outcome, dense) if dense else {})}
        where = f"{self.task_name}, {label}, repeat {repeat + 1}"
        self.measurements[label].append(measurement(outcome, quality, where, **{peak.metric: float(peak.value)}))
        self._tell("measured", f"repeat {repeat + 1}: {label}: {self._summary(label)}", arm=label)
        return outcome

    def _once(self, task: Any, method: Method | None, repeat: int) -> Outcome:
        seed = self.settings.seed + repeat
        cuda = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=cuda),
            method.apply(self.loaded.model) if method else contextlib.nullcontext(),
        ):
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

    def _write(self) -> list[Row]:
        pairs = max((len(self.measurements[label]) for label in self.arms), default=len(self.measurements[DENSE]))
        measurements = {label: runs[:pairs] for label, runs in self.measurements.items() if runs}
        params = {**plain(dataclasses.asdict(self.task)), "seed": self.settings.seed, "repeats": pairs}
        head = {"task": self.task_name, "model": self.loaded.name, "params": params}
        attention = getattr(getattr(self.loaded.model, "config", None), "_attn_implementation", None) or "eager"
        rows = make_rows(
            {**head, "run": self.provenance},
            {label: ArmConfig(method.name, config(method, self.loaded.name)) for label, method in self.arms.items()},
            measurements,
            f"{DENSE}-{attention}-{self.dtype}",
            red=self.red,
            extra_baselines=getattr(self.task, "extra_baselines", None),
        )
        shown = {label: runs[0].samples for label, runs in measurements.items()}
        write_samples(self.settings.results / FOLDER, self.provenance.id, head, shown)
        file = self.settings.results / f"{self.task_name}.jsonl"
        append(rows, file)
        self._tell("written", f"{len(rows)} rows of {pairs} finished pair{'s' * (pairs != 1)} added to {file}")
        return rows

    def _tell(self, kind: Any, text: str, arm: str = "", ok: bool = True) -> None:
        self.watch(Event(kind=kind, text=text, done=self.done, total=self.total, arm=arm, ok=ok))
