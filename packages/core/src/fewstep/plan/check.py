"""Predictions beside measured rows: every speed-up of a whole model whose method, task and model a plan knows."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import hub, plugins
from ..bench.rows import DENSE, Row
from ..contract import PlannedTask
from ..errors import FewstepError
from ..roofline import Machine, Measured, Phase, Plan, total
from .models import parts_of
from .predict import planned

SPEEDUP = "_speedup"
Machines = Callable[[str, int], Machine]
"""The machine of the rows, for a dtype and a number of threads."""


@dataclass(frozen=True)
class Pair:
    """One measured speed-up, the plan of the same request, and the row of the unchanged model."""

    row: Row
    plan: Plan
    task: Measured
    dense: Row | None

    @property
    def metric(self) -> str:
        """What the ratio is of."""
        return self.row.metric.removesuffix(SPEEDUP)

    @property
    def before(self) -> list[Phase]:
        """Phases of the unchanged model that the metric is the time of."""
        return _phases(self.plan.before.phases, self.task.phases[self.metric])

    def predicted(self, machines: Machines) -> float:
        """The ratio by the plan."""
        machine = machines(self.row.run.dtype, self.row.run.threads)
        after = _phases(self.plan.after.phases, self.task.phases[self.metric])
        return total(self.before, machine) / total(after, machine)

    def error(self, machines: Machines) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted(machines) / self.row.value - 1


def _phases(phases: Sequence[Phase], name: str) -> list[Phase]:
    """All of them, or one run of the one called `name`."""
    return [dataclasses.replace(one, times=1) for one in phases if one.name == name] if name else list(phases)


def pairs(rows: Sequence[Row]) -> tuple[list[Pair], dict[str, str]]:
    """The speed-ups over the unchanged model that can be predicted, and by method and task why others are not."""
    found, refused = [], {}
    for row in rows:
        if not _is_speedup(row):
            continue
        try:
            found.append(_pair(row, rows))
        except (FewstepError, ValueError, TypeError) as error:
            refused[f"{row.method} in {row.task} on {row.model}"] = str(error)
    return found, refused


def _is_speedup(row: Row) -> bool:
    card = plugins.methods().get(row.method)
    against_dense = row.metric.endswith(SPEEDUP) and "_vs_" not in row.metric and (row.baseline or "").startswith(DENSE)
    return against_dense and not row.superseded and card is not None and bool(card.plan) and card.role == "method"


def _pair(row: Row, rows: Sequence[Row]) -> Pair:
    task_card = plugins.find(plugins.tasks(), row.task, "task")
    task = _made(task_card.load(), row.params)
    metric = row.metric.removesuffix(SPEEDUP)
    if not isinstance(task, PlannedTask) or metric not in task.measured().phases:
        raise FewstepError(f"the task does not say what its {metric} is the time of")
    measured = task.measured()
    work = dataclasses.replace(measured.work, dtype=row.run.dtype)  # type: ignore[arg-type]
    card = plugins.methods()[row.method]
    plan = planned(card, _method(card.load(), row), _parts(row.model), work).plan
    return Pair(row, plan, dataclasses.replace(measured, work=work), _dense(row, metric, rows))


def _dense(row: Row, metric: str, rows: Sequence[Row]) -> Row | None:
    same = ("task", "model", "params", "run")
    return next(
        (
            one
            for one in rows
            if one.method == DENSE and one.metric == metric and all(getattr(one, k) == getattr(row, k) for k in same)
        ),
        None,
    )


@functools.cache
def _parts(model: str) -> Any:
    return parts_of(model)


def _method(cls: type, row: Row) -> Any:
    """The method of the row; what it says of weights is left out, since no plan reads them."""
    usual = cls.from_pretrained(row.model) if hub.shipped(row.model, row.method) else cls()
    renamed = getattr(cls, "renamed", {})
    weights = {field.name for field in dataclasses.fields(cls) if field.metadata.get("safetensors")}
    config = {renamed.get(name, name): _tuple(value) for name, value in row.config.items()}
    return dataclasses.replace(usual, **{name: value for name, value in config.items() if name not in weights})


def _made(cls: type, params: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: _tuple(value) for name, value in params.items() if name in names})


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def median_error(found: Sequence[Pair], machines: Machines) -> float:
    """Median of the absolute errors; NaN without pairs."""
    return statistics.median(abs(pair.error(machines)) for pair in found) if found else float("nan")
