"""Keep a folder of results to the rows that count: those that later ones replaced move to its archive."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..errors import BadFileError
from .rows import ARCHIVE, RUNS, Row, append, read, stored, write
from .samples import FOLDER, prune_samples
from .tables import compare


def archive(results: Path) -> int:
    """Move the rows that no table shows to ``archive/<task>.jsonl``; returns their number.

    Samples of runs that have no row left are deleted. Killed half-way, it leaves rows in both places at worst, which
    the next call repairs.

    Raises:
        BadFileError: a line is damaged; its file stays as it is.
        OSError: a file cannot be written.
    """
    moved, runs = 0, set()
    for path in sorted(set(results.glob("*.jsonl")) - {results / RUNS}):
        rows = _undamaged(path)
        live = _shown(rows)
        replaced = [dataclasses.replace(row, superseded=True) for row in rows if id(row) not in live]
        store = results / ARCHIVE / path.name
        before = {stored(row) for row in _undamaged(store)} if store.exists() else set()
        append([row for row in replaced if stored(row) not in before], store)
        write([row for row in rows if id(row) in live], path)
        moved += len(replaced)
        runs |= {row.run.id for row in rows if id(row) in live}
    prune_samples(results / FOLDER, runs)
    return moved


def _undamaged(path: Path) -> list[Row]:
    with warnings.catch_warnings(record=True) as damage:
        warnings.simplefilter("always")
        rows = read(path)
    if damage:
        raise BadFileError(f"rows are not archived, since a line would be lost: {damage[0].message}")
    return rows


def _shown(rows: Sequence[Row]) -> set[int]:
    """Identities of the rows of the newest run of each arm, and of the dense rows of these runs."""
    arms = [arm for comparison in compare(rows) for arm in comparison.arms]
    return {id(row) for arm in arms for row in (*arm.rows.values(), *arm.dense.values())}
