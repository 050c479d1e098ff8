"""Measurements of the arms of a run, and the rows that they make."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import hub
from ..errors import FewstepError
from ..method import Method
from .rows import DENSE, Row
from .task import Outcome, Sample


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One arm in one repeat, without tensors: those that were kept would count as memory of a later arm."""

    seconds: dict[str, float]
    quality: dict[str, float]
    counts: dict[str, float]
    samples: tuple[Sample, ...] = ()


def measurement(outcome: Outcome, quality: dict[str, float], where: str, **counts: float) -> Measurement:
    """The numbers and samples of `outcome`, with `quality` in place of its own and further `counts`.

    Raises:
        FewstepError: a number is not finite, or a time is not positive; the message names it and `where`.
    """
    made = Measurement(
        seconds=dict(outcome.seconds), quality=quality, counts={**outcome.counts, **counts}, samples=outcome.samples
    )
    for kind in ("seconds", "quality", "counts"):
        for name, value in getattr(made, kind).items():
            if not math.isfinite(value) or (kind == "seconds" and value <= 0):
                raise FewstepError(f"{kind}[{name!r}] is {value} in {where}: nothing of this run is recorded")
    return made


@dataclass(frozen=True)
class ArmConfig:
    """Method and configuration of an arm, as its rows state them."""

    method: str
    """Name of the method or recipe, as in ``fewstep list``."""
    config: dict[str, Any]
    """Its fields that differ from the default."""


def config(method: Method, model: str = "") -> dict[str, Any]:
    """The fields of `method` that differ from what a user of `model` gets without saying anything, as JSON has them.

    Weights are named by the folder that they were saved in. Fields that do not count for equality, or whose metadata
    holds ``"row": False`` (long tables), are left out.
    """
    cls = type(method)
    usual = cls.from_pretrained(model) if hub.shipped(model, method.name) else None
    differing = {}
    for field in dataclasses.fields(method):  # type: ignore[arg-type]  # every method is a dataclass
        weights = field.metadata.get("safetensors", False)
        if not field.metadata.get("row", True):
            continue
        value = getattr(method, field.name)
        if (field.compare or weights) and value != (getattr(usual, field.name) if usual else _default(field)):
            differing[field.name] = _folder(value) if weights and value else plain(value)
    return differing


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _folder(weights: Path) -> str:
    """Name of the saved method that a file belongs to, or of the file; never where it lies on this machine."""
    inside = [parent.name for parent in Path(weights).parents if (parent / hub.CONFIG).is_file()]
    return inside[0] if inside else Path(weights).name


def plain(value: Any) -> Any:
    """`value` as reading it back from JSON gives it; paths and the like become strings."""
    return json.loads(json.dumps(value, default=lambda v: dataclasses.asdict(v) if _is_data(v) else str(v)))


def _is_data(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def make_rows(
    common: dict[str, Any],
    arms: Mapping[str, ArmConfig],
    measurements: Mapping[str, Sequence[Measurement]],
    dense: str,
    *,
    red: Collection[str] = (),
    baselines: Mapping[str, str] | None = None,
    extra_baselines: Mapping[str, Sequence[str]] | None = None,
) -> list[Row]:
    """The rows of all arms, in the order of `measurements`.

    Args:
        common: fields of `Row` that all rows share.
        arms: methods and configurations by label; `DENSE` need not be among them.
        measurements: by label, `DENSE` among them; the n-th of each arm belongs to the n-th of every other.
        dense: the unchanged model as a baseline, in words.
        red: labels of the arms whose gate is red: they get no ratios.
        baselines: by metric of time, the label of the arm that its ratios are against; others are against `DENSE`.
        extra_baselines: by metric of time, labels of arms that it is compared with too, where they were measured.
    """
    rows = []
    for label, runs in measurements.items():
        arm = arms.get(label, ArmConfig(DENSE, {}))
        own = {**common, "method": arm.method, "config": arm.config}
        for metric, values in _columns(runs, "seconds").items():
            rows.append(_row(own, metric, "s", statistics.median(values), values))
            others = {f"{metric}_speedup": (baselines or {}).get(metric, DENSE)}
            extra = (extra_baselines or {}).get(metric, ())
            others |= {f"{metric}_vs_{other.replace('-', '_')}_speedup": other for other in extra}
            for name, other in others.items():
                ratios = _ratios(measurements.get(other, ()), runs, metric)
                if ratios and label not in (DENSE, other, *red):
                    against = {"baseline": dense if other == DENSE else other}
                    rows.append(_row({**own, **against}, name, "x", statistics.median(ratios), ratios))
        for metric, values in _columns(runs, "counts").items():
            unit = "B" if metric.endswith("_bytes") else ""
            rows.append(_row(own, metric, unit, statistics.median(values), values))
        for metric, values in _columns(runs, "quality").items():
            rows.append(_row(own, metric, "", statistics.mean(values), values))
    return rows


def _columns(runs: Sequence[Measurement], kind: str) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for run in runs:
        for metric, value in getattr(run, kind).items():
            columns.setdefault(metric, []).append(value)
    return columns


def _ratios(baseline: Sequence[Measurement], runs: Sequence[Measurement], metric: str) -> list[float]:
    pairs = zip(baseline, runs, strict=False)  # an interrupted run has one more of the baseline
    return [a.seconds[metric] / b.seconds[metric] for a, b in pairs if metric in a.seconds and metric in b.seconds]


def _row(own: dict[str, Any], metric: str, unit: str, value: float, values: list[float]) -> Row:
    spread = (min(values), max(values)) if len(values) > 1 else None
    return Row(**own, metric=metric, unit=unit, value=float(value), spread=spread)
