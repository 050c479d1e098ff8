"""`Session`: the course of every benchmark, from the first repeat to its rows and samples."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .provenance import Provenance
from .record import ArmConfig, Measurement, make_rows, plain
from .rows import DENSE, Row, append
from .samples import FOLDER, write_samples
from .settings import Event, Settings
from .task import Sample

Watch = Callable[[Event], None]


class Session(ABC):
    """A run of a benchmark: its repeats one after the other, then the rows of those that are finished."""

    dense: str
    """The unchanged model as a baseline, in words."""
    total: int
    """Number of events until the end."""

    def __init__(
        self,
        arms: Mapping[str, ArmConfig],
        task: Any,
        names: tuple[str, str],
        settings: Settings,
        provenance: Provenance,
        watch: Watch,
    ) -> None:
        """Begin without a measurement; `names` are those of the task and the model."""
        self.arms, self.task, (self.task_name, self.model) = arms, task, names
        self.settings, self.provenance, self.watch = settings, provenance, watch
        self.measurements: dict[str, list[Measurement]] = {DENSE: [], **{label: [] for label in arms}}
        self.done = 0

    @abstractmethod
    def repeat(self, repeat: int) -> None:
        """Measure all arms once."""

    @abstractmethod
    def finished(self) -> dict[str, list[Measurement]]:
        """The measurements that rows are made of; empty as long as there is nothing to record."""

    def ratios(self) -> dict[str, Any]:
        """Options of `make_rows`."""
        return {}

    def samples(self, label: str, runs: Sequence[Measurement]) -> Sequence[Sample]:
        """Outputs of an arm for the report."""
        return runs[0].samples

    def run(self) -> list[Row]:
        """Measure and record; Ctrl-C records the finished repeats before ``KeyboardInterrupt`` goes on."""
        try:
            for repeat in range(self.settings.repeats):
                self.repeat(repeat)
        except KeyboardInterrupt:
            if self.finished():
                self.write()
            raise
        return self.write()

    def write(self) -> list[Row]:
        """Append the rows of the finished repeats, after their samples."""
        measurements, results = self.finished(), self.settings.results
        repeats = max(map(len, measurements.values()))
        params = {**plain(dataclasses.asdict(self.task)), "seed": self.settings.seed, "repeats": repeats}
        head = {"task": self.task_name, "model": self.model, "params": params}
        rows = make_rows({**head, "run": self.provenance}, self.arms, measurements, self.dense, **self.ratios())
        samples = {label: self.samples(label, runs) for label, runs in measurements.items()}
        write_samples(results / FOLDER, self.provenance.id, head, samples)
        append(rows, file := results / f"{self.task_name}.jsonl")
        self.tell("written", f"{len(rows)} rows of {repeats} finished repeat{'s' * (repeats != 1)} added to {file}")
        return rows

    def tell(self, kind: Any, text: str, arm: str = "", ok: bool = True) -> None:
        """Hand an event to the watcher."""
        self.watch(Event(kind=kind, text=text, done=self.done, total=self.total, arm=arm, ok=ok))
