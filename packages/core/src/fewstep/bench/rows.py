"""`Row`: one measured number with everything needed to trust and repeat it. Stored as JSON lines, append-only."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadFileError

DENSE = "dense"
"""Name of the arm that runs the unchanged model."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of ``results/<task>.jsonl``."""

    task: str
    model: str
    method: str
    """Name as in ``fewstep list``; ``dense`` for the baseline."""
    metric: str
    """``ttft``, ``ttft_speedup`` (a ratio, more is faster), ``kl``, ``kv_bytes``, ..."""
    value: float
    unit: str
    """``s``, ``x`` (ratios), ``B``, ``tokens/s``, or empty."""
    run: str
    """One id for all rows measured side by side."""
    weights: str
    """``trained``, ``pretrained`` or ``random``."""
    device: str
    dtype: str
    threads: int
    versions: dict[str, str]
    commit: str
    date: str
    """ISO 8601 with time zone."""
    command: str
    config: dict[str, Any] = field(default_factory=dict)
    """The method's fields that differ from the default."""
    spread: tuple[float, float] | None = None
    """Minimum and maximum over the repeats."""
    baseline: str | None = None
    """What a ratio is against, for example ``dense-sdpa-float32``; None where `value` is no ratio."""
    params: dict[str, Any] = field(default_factory=dict)
    """What was run: length, new tokens, seed, repeats."""
    superseded: bool = False
    """True when a later row replaces this one."""


def append(rows: Iterable[Row], path: Path) -> None:
    """Append rows, each by one unbuffered write of a whole line, so an interrupted run leaves no half line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        for row in rows:
            file.write((json.dumps(dataclasses.asdict(row)) + "\n").encode())
        os.fsync(file.fileno())


def read(source: Path) -> list[Row]:
    """All rows of a ``.jsonl`` file, or of every such file in a folder, in file order.

    Raises:
        BadFileError: a line is not a row; the message names file and line.
    """
    files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    rows = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadFileError(f"cannot read rows from {file}: {error}") from error
        for number, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                if fields.get("spread"):
                    fields["spread"] = tuple(fields["spread"])
                if not isinstance(fields.get("value"), int | float):
                    raise ValueError("its value is no number")
                rows.append(Row(**fields))
            except (ValueError, TypeError, AttributeError) as error:
                raise BadFileError(f"{file}:{number} is not a row: {error}") from error
    return rows
