"""One page of Markdown from the rows of a run: outcomes, red checks, ratios, and the worst three against the floor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fewstep.bench.rows import Row, read
from fewstep.data.files import write_text

from . import Item
from .worker import Ended

CHECKS, KERNELS, OWN = "gpu-checks", "gpu-kernels", "gpu-items"
"""Tasks of rows that no whole model made."""
WORST = 3
Table = Iterable[Sequence[str]]


def write_summary(out: Path, device: str, items: Sequence[Item], ended: dict[str, Ended]) -> Path:
    """Write ``summary.md`` in `out` and return its path.

    Args:
        out: folder of the rows.
        device: the card in words.
        items: those that were asked for.
        ended: by name, those that were come to.
    """
    rows = [row for row in read(out) if not row.superseded]
    run = rows[-1].run if rows else None
    versions = ", ".join(f"{name} {number}" for name, number in run.versions.items()) if run else ""
    parts = [f"# {device}", versions, *_outcomes(items, ended), *_checks(rows), *_worst(rows), *_kernels(rows)]
    write_text(path := out / "summary.md", "\n\n".join(filter(None, [*parts, *_models(rows)])) + "\n")
    return path


def _table(head: Sequence[str], lines: Table) -> str:
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in cells)


def _outcomes(items: Sequence[Item], ended: dict[str, Ended]) -> list[str]:
    never = Ended(outcome="not begun", reason="the time was over")
    lines = []
    for item in items:
        end = ended.get(item.name, never)
        lines.append((item.name, end.outcome, f"{end.seconds:.0f}", item.proves, end.reason))
    return ["## Items", _table(("item", "outcome", "seconds", "proves", "reason"), lines)]


def _checks(rows: Sequence[Row]) -> list[str]:
    checks = [row for row in rows if row.task == CHECKS]
    red = [f"- **{row.method}**: {row.params['check']}: {row.params.get('wrong')}" for row in checks if not row.value]
    return ["## Checks", "\n".join([f"{len(checks) - len(red)} of {len(checks)} are green.", *red])]


def _worst(rows: Sequence[Row]) -> list[str]:
    """Kernels of ours that are farthest from the floor of bytes and operations: what to profile first."""
    worst: dict[str, Row] = {}
    for row in rows:
        ours = row.task == KERNELS and row.metric.endswith("_over_floor") and row.method == row.params["kernel"]
        if ours and row.value > (known.value if (known := worst.get(row.method)) else 0.0):
            worst[row.method] = row
    if not worst:
        return []
    first = sorted(worst.values(), key=lambda row: -row.value)[:WORST]
    lines = [
        f"{n}. **{row.method}**: {row.value:.1f} times the floor ({_sizes(row)})" for n, row in enumerate(first, 1)
    ]
    return ["## Farthest from the floor", "\n".join(lines)]


def _kernels(rows: Sequence[Row]) -> list[str]:
    lines = [
        (row.model, _sizes(row), row.metric.removesuffix("_speedup"), f"{row.value:.2f}x", row.baseline or "", over)
        for row in rows
        if row.task == KERNELS and row.metric.endswith("_speedup") and row.method == row.params["kernel"]
        for over in [_over_floor(rows, row)]
    ]
    head = ("kernel", "sizes", "pass", "against the fastest dense", "which is", "times the floor")
    return ["## Kernels", _table(head, lines)] if lines else []


def _over_floor(rows: Sequence[Row], speedup: Row) -> str:
    name = speedup.metric.replace("_speedup", "_over_floor")
    same = (row for row in rows if row.run == speedup.run and row.params == speedup.params)
    return next((f"{row.value:.2f}" for row in same if row.metric == name and row.method == speedup.method), "")


def _models(rows: Sequence[Row]) -> list[str]:
    lines = [
        (
            row.model,
            _arm(row),
            _sizes(row),
            row.metric.removesuffix("_speedup"),
            f"{row.value:.2f}x",
            row.baseline or "",
        )
        for row in rows
        if row.task not in (CHECKS, KERNELS, OWN) and row.metric.endswith("_speedup")
    ]
    head = ("model (random weights)", "method", "sizes", "time", "ratio", "against")
    return ["## Whole models", _table(head, lines)] if lines else []


def _sizes(row: Row) -> str:
    hidden = ("kernel", "ceiling_gb_s", "ceiling_tflop_s", "repeats", "shared", "many", "words")
    shown = {name: value for name, value in row.params.items() if name not in hidden}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )


def _arm(row: Row) -> str:
    shown = {name: value for name, value in row.config.items() if not isinstance(value, str | list)}
    return ", ".join([row.method, *(f"{name} {value}" for name, value in shown.items())])
