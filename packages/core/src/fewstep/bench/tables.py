"""Rows -> comparisons: the arms measured against one dense model, dense first, as a table in human units."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import BadFileError, FewstepError
from .rows import DENSE, Row, read

RANDOM_MARK = "random weights: mechanics only"
SPEEDUP = "_speedup"
TELLING = ("ttft", "time_to_quality", "generate")
"""What a user waits for most, where it was measured."""
QUALITY = {
    "accuracy": True,
    "frechet": False,
    "top1_agreement": True,
    "psnr": True,
    "ssim": True,
    "kl": False,
    "nll_gap": False,
    "consistency": True,
    "noise": False,
}
"""Metrics of quality, the most telling first; True where higher is better."""
_HOW_OFTEN = ("seed", "seeds", "repeats")
"""Params that say how often something was run, not what; they are told with the machine."""
_LABELS = {
    "ttft": "time to first token",
    "top1_agreement": "top-1 agreement",
    "frechet": "Frechet distance",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "kl": "KL to dense",
    "nll_gap": "NLL gap",
    "skipped_share": "skipped pairs",
    "kv_bytes": "KV memory",
    "peak_rss_bytes": "peak memory",
}
_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of a table: a method with one configuration, all of its rows from one run."""

    label: str
    method: str
    rows: dict[str, Row]
    """By metric; never empty."""
    dense: dict[str, Row]
    """The dense rows of the same run, by metric: what the arm is compared with. Empty if there are none."""
    older: int
    """Earlier runs of the same arm, which are not shown."""

    @property
    def first(self) -> Row:
        """Any row of the arm: what they share (run, commit, command) is read from it."""
        return next(iter(self.rows.values()))


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
    def setting(self) -> Row:
        """Any row: weights, device, dtype and threads are the same in all of them."""
        return self.arms[0].first

    @property
    def random(self) -> bool:
        """True where the weights are random, so that no figure of quality can be meant."""
        return self.setting.weights == "random"


def load(source: Path) -> list[Row]:
    """The rows of a ``.jsonl`` file or of a folder of them.

    Raises:
        FewstepError: there is none that counts; the message names the command that makes rows.
        BadFileError: a line is damaged.
    """
    rows = read(source) if source.exists() else []
    if all(row.superseded for row in rows):
        hint = "`fewstep bench METHOD --model MODEL --task TASK` makes them"
        raise FewstepError(f"no {'current ' if rows else ''}rows in {source}: {hint}")
    return rows


def compact(fields: dict[str, Any]) -> str:
    """``keep=0.5 layers=[1,2]``: a configuration in one line."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
    return " ".join(f"{key}={text.replace(', ', ',')}" for key, text in texts.items())


def arm_label(row: Row) -> str:
    """``slim-infer keep=0.5``: tells apart two arms of one method."""
    return f"{row.method} {compact(row.config)}".strip()


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """One `Comparison` per task, model, params without seed and repeats, weights and machine, in the order of the rows.

    Superseded rows are left out. An arm that was measured more than once is taken whole from its newest run.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if not row.superseded:
            # Seconds of two machines or dtypes are no comparison, so these belong to the key.
            key = (row.task, row.model, compact(_params(row)), row.weights, row.device, row.dtype, row.threads)
            groups.setdefault(key, []).append(row)
    return [_comparison(group) for group in groups.values()]


def _comparison(rows: list[Row]) -> Comparison:
    runs: dict[str, dict[str, list[Row]]] = {}
    dense: dict[str, dict[str, Row]] = {}
    for row in rows:
        runs.setdefault(arm_label(row), {}).setdefault(row.run, []).append(row)
        if row.method == DENSE:
            dense.setdefault(row.run, {})[row.metric] = row
    arms = []
    for label, by_run in runs.items():
        newest = max(by_run.values(), key=lambda found: max(map(_when, found)))
        by_metric, beside = {row.metric: row for row in newest}, dense.get(newest[0].run, {})
        arms.append(Arm(label=label, method=newest[0].method, rows=by_metric, dense=beside, older=len(by_run) - 1))
    arms.sort(key=lambda arm: arm.method != DENSE)
    seen = list(dict.fromkeys(row.metric for arm in arms for row in arm.rows.values()))
    metrics = sorted(seen, key=lambda name: _column(name, seen, arms))
    first = rows[0]
    return Comparison(
        task=first.task, model=first.model, params=_params(first), arms=tuple(arms), metrics=tuple(metrics)
    )


def _params(row: Row) -> dict[str, Any]:
    return {name: row.params[name] for name in sorted(row.params) if name not in _HOW_OFTEN}


def _when(row: Row) -> datetime:
    try:
        date = datetime.fromisoformat(row.date)
    except (ValueError, TypeError) as error:
        raise BadFileError(f"a row of run {row.run} has no ISO 8601 date: {row.date!r}") from error
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _column(metric: str, seen: list[str], arms: list[Arm]) -> tuple[int, int, bool]:
    """Waiting times with the ratio beside each, then quality, then the rest, memory last."""
    base = metric.removesuffix(SPEEDUP)
    unit = next(arm.rows[metric].unit for arm in arms if metric in arm.rows)
    kind = 1 if metric in QUALITY else {"s": 0, "x": 0, "B": 3}.get(unit, 2)
    return kind, seen.index(base if base in seen else metric), metric.endswith(SPEEDUP)


def speed_metric(comparison: Comparison) -> str | None:
    """The ratio of `TELLING` waiting times if there is one, else the first ratio, else None."""
    found = [name for name in comparison.metrics if name.endswith(SPEEDUP)]
    return next((name + SPEEDUP for name in TELLING if name + SPEEDUP in found), next(iter(found), None))


def quality_metric(comparison: Comparison) -> str | None:
    """The most telling figure of quality that the rows have; None on random weights."""
    return None if comparison.random else next((name for name in QUALITY if name in comparison.metrics), None)


def fastest(comparison: Comparison) -> Arm | None:
    """The arm with the largest speed-up; None where no ratio was measured."""
    metric = speed_metric(comparison)
    arms = [arm for arm in comparison.arms if metric in arm.rows]
    return max(arms, key=lambda arm: arm.rows[metric].value, default=None) if metric else None


def heading(metric: str) -> str:
    """What a column is called: ``time to first token speed-up``."""
    base = metric.removesuffix(SPEEDUP)
    return _LABELS.get(base, base.replace("_", " ")) + (" speed-up" if base != metric else "")


def direction(metric: str) -> str:
    """``↑`` where higher is better, ``↓`` where lower is, empty where that is not known."""
    if metric in QUALITY or metric.endswith(SPEEDUP):
        return "↑" if QUALITY.get(metric, True) else "↓"
    return ""


def amount(row: Row) -> str:
    """The value in human units: ``480 ms``, ``1.79x``, ``12.5 MiB``."""
    scale, unit = _scale(row)
    return f"{_number(row.value / scale, unit)}{'' if unit == 'x' else ' '}{unit}".strip()


def spread(row: Row) -> str:
    """``[460, 510]`` in the unit of `amount`; empty where there was one repeat or all gave the same."""
    scale, unit = _scale(row)
    if row.spread is None or row.spread[0] == row.spread[1]:
        return ""
    return f"[{', '.join(_number(bound / scale, unit) for bound in row.spread)}]"


def _scale(row: Row) -> tuple[float, str]:
    """What to divide by, and the unit that gives."""
    scales = _SCALES.get(row.unit, ((1.0, row.unit),))
    return next((scale for scale in scales if abs(row.value) >= scale[0]), scales[-1])


def _number(value: float, unit: str) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if unit == "x" and abs(value) >= 0.1:
        return f"{value:.2f}"
    if unit == "":
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def verdict(row: Row) -> str:
    """``gain`` or ``loss`` where every repeat of a speed-up says so, else empty."""
    low, high = row.spread or (row.value, row.value)
    return "gain" if low > 1 else "loss" if high < 1 else ""


def cell(arm: Arm, metric: str) -> str:
    """``1.79x [1.71, 1.86]``, or a dash where the arm has no such row."""
    row = arm.rows.get(metric)
    return f"{amount(row)} {spread(row)}".strip() if row else "–"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How the rows of one run were made: what is needed to trust and repeat them."""

    run: str
    summary: str
    """Device, threads, dtype, seed, repeats, versions, commit and date."""
    baselines: tuple[str, ...]
    commands: tuple[str, ...]


def origins(comparison: Comparison) -> list[Origin]:
    """One `Origin` per run that the arms come from, in the order of the arms."""
    runs: dict[str, list[Row]] = {}
    for arm in comparison.arms:
        runs.setdefault(arm.first.run, []).extend(arm.rows.values())
    return [_origin(run, rows) for run, rows in runs.items()]


def _origin(run: str, rows: list[Row]) -> Origin:
    row = max(rows, key=_when)
    versions = ", ".join(f"{name} {version}" for name, version in row.versions.items())
    machine = f"{row.device}, {row.threads} thread{'' if row.threads == 1 else 's'}, {row.dtype}"
    often = ", ".join(f"{name} {row.params[name]}" for name in _HOW_OFTEN if name in row.params)
    return Origin(
        run=run,
        summary="; ".join(filter(None, (machine, often, versions, f"commit {row.commit}", row.date))),
        baselines=tuple(dict.fromkeys(row.baseline for row in rows if row.baseline)),
        commands=tuple(dict.fromkeys(row.command for row in rows)),
    )


def remarks(comparison: Comparison) -> list[str]:
    """Sentences that a reader of the table must know: random weights, several runs, older runs."""
    found = [f"{RANDOM_MARK.capitalize()}."] if comparison.random else []
    if len(origins(comparison)) > 1:
        found.append("The arms come from several runs; each ratio is against the dense model of its own run.")
    older = [f"{arm.label} ({arm.older})" for arm in comparison.arms if arm.older]
    return found + ([f"Older runs, not shown: {', '.join(older)}."] if older else [])


def superseded_remark(rows: Sequence[Row]) -> str:
    """How many rows were left out because a later one replaces them; empty if none."""
    count = sum(row.superseded for row in rows)
    return f"{count} superseded row{'' if count == 1 else 's'} left out." if count else ""


def table(header: Sequence[str], body: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A Markdown table whose first `words` columns are words and the rest numbers; bars in cells are escaped."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *body]
    return "\n".join(f"| {' | '.join(_escaped(text) for text in line)} |" for line in lines)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
