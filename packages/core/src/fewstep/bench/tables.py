"""Rows -> comparisons: the arms measured against one dense model, dense first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FewstepError
from .formatting import QUALITY, SPEEDUP, amount, compact, spread
from .provenance import Provenance
from .rows import DENSE, Row, read

RANDOM_MARK = "random weights: mechanics only"
DIRTY_MARK = "†"
DIRTY_REMARK = f"{DIRTY_MARK} Measured on a checkout whose files differed from its commit."
TELLING = ("ttft", "time_to_quality", "generate")
"""The waits that users notice most, where they were measured."""
_HOW_OFTEN = ("seed", "seeds", "repeats")
"""Params that say how often something was run; they are told with the machine."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of a table: a method with one configuration, all of its rows from one run."""

    label: str
    method: str
    rows: dict[str, Row]
    """By metric; never empty."""
    dense: dict[str, Row]
    """The dense rows of the same run, by metric, which the arm is compared with. Empty if there are none."""
    older: int
    """Number of earlier runs of the same arm, which are not shown."""

    @property
    def first(self) -> Row:
        """Any row of the arm, for the fields that all of them share."""
        return next(iter(self.rows.values()))

    @property
    def run(self) -> Provenance:
        """Provenance of its rows."""
        return self.first.run

    @property
    def marked(self) -> str:
        """The label, with a dagger where the checkout was dirty."""
        return f"{self.label} {DIRTY_MARK}" if self.run.dirty else self.label


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One table: arms that differ only in the method, on the same task, model, params, machine and dtype."""

    task: str
    model: str
    params: dict[str, Any]
    """Without seed and repeats."""
    arms: tuple[Arm, ...]
    """Dense first, then in the order of the rows."""
    metrics: tuple[str, ...]

    @property
    def setting(self) -> Provenance:
        """Any of the runs: weights, hardware, device, dtype and threads are the same in all of them."""
        return self.arms[0].run

    @property
    def random(self) -> bool:
        """True where the weights are random, so that no quality metric can be meant."""
        return self.setting.weights == "random"

    @property
    def machine(self) -> str:
        """``cpu, 2 threads, float32``."""
        threads = f"{self.setting.threads} thread{'s' * (self.setting.threads != 1)}"
        return f"{self.setting.hardware}, {threads}, {self.setting.dtype}"

    @property
    def names(self) -> tuple[str, ...]:
        """Task and model, and the hardware where it is no CPU: the name of a file of figures."""
        return self.task, self.model, *([] if self.setting.hardware == "cpu" else [self.setting.hardware])


def load(source: Path) -> list[Row]:
    """The rows of a ``.jsonl`` file or of a folder of them.

    Raises:
        FewstepError: there is none that counts; the message names the command that makes rows.
        BadFileError: a file cannot be read.
    """
    rows = read(source) if source.exists() else []
    if all(row.superseded for row in rows):
        hint = "`fewstep bench METHOD --model MODEL --task TASK` makes them"
        raise FewstepError(f"no {'current ' if rows else ''}rows in {source}: {hint}")
    return rows


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """One `Comparison` per task, model, params without seed and repeats, weights and machine, in the order of the rows.

    Superseded rows are left out. An arm that was measured more than once is taken whole from its newest run.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if not row.superseded:
            # Seconds of two machines or dtypes are no comparison, so these belong to the key.
            machine = (row.run.weights, row.run.hardware, row.run.device, row.run.dtype, row.run.threads)
            groups.setdefault((row.task, row.model, compact(_params(row)), *machine), []).append(row)
    return [_comparison(group) for group in groups.values()]


def _comparison(rows: list[Row]) -> Comparison:
    by_arm: dict[str, dict[str, list[Row]]] = {}
    dense: dict[str, dict[str, Row]] = {}
    for row in rows:
        label = f"{row.method} {compact(row.config)}".strip()
        by_arm.setdefault(label, {}).setdefault(row.run.id, []).append(row)
        if row.method == DENSE:
            dense.setdefault(row.run.id, {})[row.metric] = row
    arms = []
    for label, by_run in by_arm.items():
        newest = max(by_run.values(), key=lambda rows: rows[0].run.time)
        by_metric, own_dense = {row.metric: row for row in newest}, dense.get(newest[0].run.id, {})
        arms.append(Arm(label=label, method=newest[0].method, rows=by_metric, dense=own_dense, older=len(by_run) - 1))
    arms.sort(key=lambda arm: arm.method != DENSE)
    seen = list(dict.fromkeys(row.metric for arm in arms for row in arm.rows.values()))
    metrics = sorted(seen, key=lambda name: _column(name, seen, arms))
    task, model, params = rows[0].task, rows[0].model, _params(rows[0])
    return Comparison(task=task, model=model, params=params, arms=tuple(arms), metrics=tuple(metrics))


def _params(row: Row) -> dict[str, Any]:
    return {name: row.params[name] for name in sorted(row.params) if name not in _HOW_OFTEN}


def _column(metric: str, seen: list[str], arms: list[Arm]) -> tuple[int, int, bool]:
    """Waiting times with the ratio beside each, then quality, then the rest, memory last."""
    base = metric.removesuffix(SPEEDUP)
    unit = next(arm.rows[metric].unit for arm in arms if metric in arm.rows)
    kind = 1 if metric in QUALITY else {"s": 0, "x": 0, "B": 3}.get(unit, 2)
    return kind, seen.index(base if base in seen else metric), metric.endswith(SPEEDUP)


def speed_metric(comparison: Comparison) -> str | None:
    """The ratio of `TELLING` waiting times if there is one, else the first ratio, else None."""
    ratios = [name for name in comparison.metrics if name.endswith(SPEEDUP)]
    return next((name + SPEEDUP for name in TELLING if name + SPEEDUP in ratios), next(iter(ratios), None))


def quality_metric(comparison: Comparison) -> str | None:
    """The most telling quality metric that the rows have; None on random weights."""
    return None if comparison.random else next((name for name in QUALITY if name in comparison.metrics), None)


def cell(arm: Arm, metric: str) -> str:
    """``1.79x [1.71, 1.86]``, or a dash where the arm has no such row."""
    row = arm.rows.get(metric)
    return f"{amount(row)} {spread(row)}".strip() if row else "–"


def runs(comparison: Comparison) -> dict[Provenance, list[Row]]:
    """The rows of each run that the arms come from, in the order of the arms."""
    rows: dict[Provenance, list[Row]] = {}
    for arm in comparison.arms:
        rows.setdefault(arm.run, []).extend(arm.rows.values())
    return rows


def conditions(run: Provenance, rows: Sequence[Row]) -> str:
    """Device, threads, dtype, seed, repeats, versions, commit, date and baselines of a run: one or two sentences."""
    machine = f"{run.device}, {run.threads} thread{'s' * (run.threads != 1)}, {run.dtype}"
    often = ", ".join(f"{name} {rows[0].params[name]}" for name in _HOW_OFTEN if name in rows[0].params)
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    baselines = ", ".join(dict.fromkeys(row.baseline for row in rows if row.baseline))
    parts = "; ".join(filter(None, (machine, often, versions, f"commit {run.commit}", run.date)))
    return f"Measured on {parts}." + (f" Ratios are pair by pair against {baselines}." if baselines else "")


def remarks(comparison: Comparison) -> list[str]:
    """Sentences that a reader of the table must know: random weights, dirty checkouts, several runs, older runs."""
    said = [f"{RANDOM_MARK.capitalize()}."] if comparison.random else []
    if any(arm.run.dirty for arm in comparison.arms):
        said.append(DIRTY_REMARK)
    if len(runs(comparison)) > 1:
        said.append("The arms come from several runs; each ratio is against the dense model of its own run.")
    older = [f"{arm.label} ({arm.older})" for arm in comparison.arms if arm.older]
    return said + ([f"Older runs, not shown: {', '.join(older)}."] if older else [])
