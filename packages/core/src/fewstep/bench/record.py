"""From measurements to rows and sample files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from .. import hub
from ..errors import FewstepError
from ..method import Method
from . import timing
from .rows import DENSE, Row
from .settings import Settings
from .task import Outcome, Sample


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One arm in one repeat; tensors are left out, so that what is kept does not count as memory of a later arm."""

    seconds: dict[str, float]
    quality: dict[str, float]
    counts: dict[str, float]
    samples: tuple[Sample, ...]


def measured(outcome: Outcome, quality: dict[str, float], peak: tuple[str, int] | None, where: str) -> Measured:
    """What is kept of `outcome`, with the peak memory as ``(metric, bytes)`` where it was watched.

    Raises:
        FewstepError: a number is not finite, or a time is not positive; the message names it and `where`.
    """
    for kind, numbers in (("seconds", outcome.seconds), ("quality", quality), ("counts", outcome.counts)):
        for name, value in numbers.items():
            if not math.isfinite(value) or (kind == "seconds" and value <= 0):
                raise FewstepError(f"{kind}[{name!r}] is {value} in {where}: nothing of this run is recorded")
    counts = {**outcome.counts, **({peak[0]: float(peak[1])} if peak else {})}
    return Measured(seconds=dict(outcome.seconds), quality=quality, counts=counts, samples=outcome.samples)


@dataclass(frozen=True)
class Named:
    """What rows say of an arm."""

    name: str
    """Of the method or recipe, as in ``fewstep list``."""
    config: dict[str, Any]
    """Its fields that differ from the default."""


def origin(settings: Settings, run: str, weights: str, device: torch.device, dtype: str) -> dict[str, Any]:
    """The fields of `Row` that say how all rows of a run were made."""
    return {
        "run": run,
        "weights": weights,
        "device": timing.device_name(device),
        "dtype": dtype,
        "threads": settings.threads,
        "versions": timing.versions(),
        "commit": timing.commit(settings.results),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": settings.command,
    }


def config(method: Method, model: str = "") -> dict[str, Any]:
    """The fields of `method` that differ from what a user of `model` gets without saying anything, as JSON has them.

    Weights are named by the folder that they were saved in. Fields that do not count for equality, or whose metadata
    holds ``"row": False`` (long tables), are left out.
    """
    cls = type(method)
    usual = cls.from_pretrained(model) if hub.shipped(model, method.name) else None
    found = {}
    for field in dataclasses.fields(method):  # type: ignore[arg-type]  # every method is a dataclass
        weights = field.metadata.get("safetensors", False)
        if not field.metadata.get("row", True):
            continue
        value = getattr(method, field.name)
        if (field.compare or weights) and value != (getattr(usual, field.name) if usual else _default(field)):
            found[field.name] = _folder(value) if weights and value else plain(value)
    return found


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
    arms: Mapping[str, Named],
    found: Mapping[str, Sequence[Measured]],
    baseline: str,
    red: Collection[str] = (),
    against: Mapping[str, str] | None = None,
    beside: Mapping[str, Sequence[str]] | None = None,
) -> list[Row]:
    """The rows of all arms, the baseline first.

    Args:
        common: the fields of `Row` that all rows of a run share.
        arms: what the arms are, by label; `DENSE` need not be among them.
        found: what was measured by label, `DENSE` among them; the n-th of each arm belongs to the n-th of the baseline.
        baseline: what the ratios are against, in words.
        red: labels of the arms whose gate is red: they get no ratios.
        against: by metric, the label of another arm that its ratios are against.
        beside: by metric, labels of further arms that it is compared with, where they were measured.
    """
    against, beside = against or {}, beside or {}
    rows = []
    for label, runs in found.items():
        arm = arms.get(label, Named(DENSE, {}))
        own = {**common, "method": arm.name, "config": arm.config}
        for metric, values in _columns(runs, "seconds").items():
            rows.append(_row(own, metric, "s", statistics.median(values), values))
            other = against.get(metric, DENSE)
            ratios = [] if label in (DENSE, other) or label in red else _ratios(found[other], runs, metric)
            if ratios:
                base = {"baseline": baseline if other == DENSE else other}
                rows.append(_row({**own, **base}, f"{metric}_speedup", "x", statistics.median(ratios), ratios))
            for other in beside.get(metric, ()):
                ratios = (
                    [] if other not in found or label in (DENSE, other, *red) else _ratios(found[other], runs, metric)
                )
                if ratios:
                    name = f"{metric}_vs_{other.replace('-', '_')}_speedup"
                    rows.append(_row({**own, "baseline": other}, name, "x", statistics.median(ratios), ratios))
        for metric, values in _columns(runs, "counts").items():
            unit = "B" if metric.endswith("_bytes") else ""
            rows.append(_row(own, metric, unit, statistics.median(values), values))
        for metric, values in _columns(runs, "quality").items():
            rows.append(_row(own, metric, "", statistics.mean(values), values))
    return rows


def _columns(runs: Sequence[Measured], kind: str) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for run in runs:
        for metric, value in getattr(run, kind).items():
            columns.setdefault(metric, []).append(value)
    return columns


def _ratios(dense: Sequence[Measured], runs: Sequence[Measured], metric: str) -> list[float]:
    pairs = zip(dense, runs, strict=False)  # an interrupted run has one more of the baseline
    return [a.seconds[metric] / b.seconds[metric] for a, b in pairs if metric in a.seconds and metric in b.seconds]


def _row(own: dict[str, Any], metric: str, unit: str, value: float, values: list[float]) -> Row:
    spread = (min(values), max(values)) if len(values) > 1 else None
    return Row(**own, metric=metric, unit=unit, value=float(value), spread=spread)


def write_samples(folder: Path, run: str, head: dict[str, Any], samples: dict[str, tuple[Sample, ...]]) -> None:
    """Write ``<run>.json`` to `folder`, and copies of the files that samples name; nothing where there are none."""
    if not any(samples.values()):
        return
    (folder / run).mkdir(parents=True, exist_ok=True)
    stored = {
        label: [_stored(sample, folder, f"{run}/{arm}-{i}") for i, sample in enumerate(of_arm)]
        for arm, (label, of_arm) in enumerate(samples.items())
    }
    if not any((folder / run).iterdir()):
        (folder / run).rmdir()
    part = folder / f"{run}.json.part"
    part.write_text(json.dumps({**head, "arms": stored}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, folder / f"{run}.json")


_SUFFIXES = {b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp"}


def _stored(sample: Sample, folder: Path, stem: str) -> dict[str, str | None]:
    """The sample as JSON; its file is copied, because the report embeds only what lies in the samples folder."""
    name = sample.file
    if sample.image is not None:
        kind = next((suffix for head, suffix in _SUFFIXES.items() if sample.image.startswith(head)), None)
        if kind is None:
            raise FewstepError(f"the image of sample {sample.title!r} is neither PNG, GIF nor WebP")
        name = stem + kind
        (folder / name).write_bytes(sample.image)
    elif sample.file is not None:
        name = stem + Path(sample.file).suffix
        shutil.copyfile(sample.file, folder / name)
    return {"title": sample.title, "text": sample.text, "file": name}
