"""Tables: by rich on a terminal, aligned plain columns when piped."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..bench.formatting import compact, heading
from ..bench.rows import Row
from ..bench.tables import cell, compare, remarks


def show_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print one table; cells are plain text."""
    if sys.stdout.isatty():
        _rich(title, header, lines)
        return
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    print(title)
    for line in (header, *lines):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(flush=True)


def _rich(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(header):
        table.add_column(name, overflow="fold", no_wrap=column == 0)
    for line in lines:
        table.add_row(*map(Text, line))  # Text: brackets in a cell are no markup
    Console().print(table)


def show_rows(rows: Sequence[Row]) -> None:
    """Print one table for each comparison, metrics down and arms across, and its remarks."""
    for comparison in compare(rows):
        title = f"{comparison.task} on {comparison.model} ({comparison.machine}; {compact(comparison.params)})"
        lines = [(heading(metric), *(cell(arm, metric) for arm in comparison.arms)) for metric in comparison.metrics]
        show_table(title, ("", *(arm.marked for arm in comparison.arms)), lines)
        for remark in remarks(comparison):
            print(remark, flush=True)
