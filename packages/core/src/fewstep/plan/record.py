"""Rows of predictions: beside every measured speed-up, and of all known models on all cards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..bench.rows import DENSE, Row
from ..bench.rows import write as replace_rows
from ..bench.settings import Settings
from ..families import known
from ..roofline import Machine, Workload, memory, time, total
from .check import Machines, Pair
from .machines import CARDS, machine
from .models import parts_of
from .predict import Planned, applicable, stack

TASK = "plan"
FILE = f"{TASK}.jsonl"


def write(
    found: Sequence[Pair], machines: Machines, results: Path, command: str, models: Sequence[str] | None = None
) -> int:
    """Write the rows to ``plan.jsonl``, in place of those that were there; returns their number.

    Args:
        found: measured speed-ups with their plans.
        machines: that they were measured on.
        results: folder of rows.
        command: that writes the same again.
        models: hub ids to predict on all cards; default: all that are known.

    Raises:
        FewstepError: the checkout is dirty: its rows could not be repeated.
        OSError: the folder cannot be written.
    """
    import torch

    settings = Settings(results=results, command=command)
    settings.prepare()
    run = settings.provenance("random", torch.device("cpu"), "float32")
    rows = [
        Row(task=TASK, run=run, **fields) for fields in (*_beside(found, machines), *_real(models or known.names()))
    ]
    replace_rows(rows, results / FILE)
    return len(rows)


def _beside(found: Sequence[Pair], machines: Machines) -> Iterator[dict[str, Any]]:
    for pair in found:
        row = pair.row
        own = {"model": row.model, "method": row.method, "config": row.config, "unit": "x"}
        own["params"] = {"of": row.task, **row.params, "dtype": row.run.dtype, "threads": row.run.threads}
        yield {**own, "metric": f"{pair.metric}_predicted", "value": pair.predicted(machines)}
        yield {**own, "metric": f"{pair.metric}_measured", "value": row.value}


def _real(models: Sequence[str]) -> Iterator[dict[str, Any]]:
    work = Workload()
    for name in models:
        found, _ = applicable(parts_of(name), work)
        for card in CARDS:
            device = machine(card, work.dtype, 1)
            together = stack(found, device)
            params = {"of": card, "dtype": work.dtype}
            for one in (*found, *([together] if together else [])):
                yield from _predicted(name, one, device, params)


def _predicted(model: str, one: Planned, device: Machine, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    own = {"model": model, "config": {}, "params": params}
    for method, cost in ((DENSE, one.plan.before), (one.name, one.plan.after)):
        for phase in cost.phases:
            metric = f"{phase.name.replace(' ', '_')}_predicted"
            yield {**own, "method": method, "metric": metric, "value": time(phase, device).seconds, "unit": "s"}
        yield {
            **own,
            "method": method,
            "metric": "request_predicted",
            "value": total(cost.phases, device),
            "unit": "s",
        }
        yield {
            **own,
            "method": method,
            "metric": "memory_predicted",
            "value": memory(cost),
            "unit": "B",
        }
    yield {**own, "method": one.name, "metric": "gain_predicted", "value": one.gain(device), "unit": "x"}
