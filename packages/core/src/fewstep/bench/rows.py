"""`Row`: one measured number. JSON lines, append-only: rows in ``<task>.jsonl``, their provenance in ``runs.jsonl``."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BadFileError
from .provenance import Provenance

DENSE = "dense"
"""Name of the arm that runs the unchanged model."""
RUNS = "runs.jsonl"
"""File with one `Provenance` a line, beside the files of rows."""
ARCHIVE = "archive"
"""Folder of the rows that later ones replaced; their runs stay in the `RUNS` of the folder above."""
_INHERITED = tuple(field.name for field in dataclasses.fields(Provenance) if field.name != "id")
_OMITTED = {"spread": None, "baseline": None, "superseded": False}
"""Defaults that a stored row leaves out."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of ``results/<task>.jsonl``, joined with the provenance of its run."""

    task: str
    model: str
    method: str
    """Name as in ``fewstep list``; ``dense`` for the unchanged model."""
    config: dict[str, Any] = field(default_factory=dict)
    """The method's fields that differ from the default."""
    metric: str
    """``ttft``, ``ttft_speedup`` (a ratio, more is faster), ``kl``, ``kv_bytes``, ..."""
    value: float
    unit: str
    """``s``, ``x`` (ratios), ``B``, ``tokens/s``, or empty."""
    spread: tuple[float, float] | None = None
    """Minimum and maximum over the repeats."""
    baseline: str | None = None
    """The other side of a ratio, for example ``dense-sdpa-float32``; None where `value` is no ratio."""
    params: dict[str, Any] = field(default_factory=dict)
    """Fields of the task, seed and repeats."""
    run: Provenance
    """Stored as its id."""
    superseded: bool = False
    """True when a later row replaces this one."""


def append(rows: Sequence[Row], path: Path) -> None:
    """Append rows to `path`, after the provenance of runs that the `RUNS` file does not hold yet; both are synced.

    Raises:
        OSError: a file cannot be written.
    """
    _append_runs(rows, path.parent)
    _append(map(stored, rows), path)


def write(rows: Sequence[Row], path: Path) -> None:
    """Replace the rows in `path` atomically, after the provenance of runs that the `RUNS` file does not hold yet.

    Raises:
        OSError: a file cannot be written.
    """
    _append_runs(rows, path.parent)
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    part.touch()
    _append(map(stored, rows), part)
    os.replace(part, path)


def stored(row: Row) -> str:
    """The line of a row, without its end."""
    fields = {**vars(row), "run": row.run.id}
    return json.dumps({name: value for name, value in fields.items() if _OMITTED.get(name, ...) != value})


def _runs_file(folder: Path) -> Path:
    return (folder.parent if folder.name == ARCHIVE else folder) / RUNS


def _append_runs(rows: Sequence[Row], folder: Path) -> None:
    known = _runs(folder)
    fresh = {row.run.id: row.run for row in rows if row.run.id not in known}
    _append((json.dumps(dataclasses.asdict(run)) for run in fresh.values()), _runs_file(folder))


def _append(lines: Iterable[str], path: Path) -> None:
    """Append whole lines in one write, beginning with the line end that a killed writer may have left out."""
    text = "".join(f"{line}\n" for line in lines).encode()
    if not text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            text = text if file.read() == b"\n" else b"\n" + text
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(source: Path) -> list[Row]:
    """All rows of a ``.jsonl`` file, or of every such file in a folder (not in its archive), in file order.

    Lines that hold their own provenance, as all did once, are read too. A damaged line, or one whose run is unknown, is
    skipped with a warning that names file and line.

    Raises:
        BadFileError: a file cannot be read.
    """
    folder = source if source.is_dir() else source.parent
    files = sorted(set(source.glob("*.jsonl")) - {source / RUNS}) if source.is_dir() else [source]
    runs = _runs(folder)
    return [row for file in files for row in _parsed(file, lambda fields: _row(fields, runs))]


def _runs(folder: Path) -> dict[str, Provenance]:
    file = _runs_file(folder)
    return {run.id: run for run in _parsed(file, lambda fields: Provenance(**fields))} if file.exists() else {}


def _row(fields: dict[str, Any], runs: dict[str, Provenance]) -> Row:
    name = fields.pop("run", None)
    if "device" in fields:
        fields.setdefault("hardware", "cuda" if "NVIDIA" in fields["device"] else "cpu")
        run = Provenance(id=name, **{key: fields.pop(key) for key in _INHERITED if key in fields})
    elif name in runs:
        run = runs[name]
    else:
        raise ValueError(f"its run {name!r} is not in {RUNS}")
    if not isinstance(fields.get("value"), int | float):
        raise ValueError("its value is no number")
    spread = fields.pop("spread", None)
    return Row(**fields, run=run, spread=(spread[0], spread[1]) if spread else None)


def _parsed(file: Path, make: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise BadFileError(f"cannot read rows from {file}: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield make(json.loads(line))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            warnings.warn(f"{file}:{number} is damaged and skipped: {error}", stacklevel=3)
