"""Tables: by rich on a terminal, aligned plain columns when piped."""

from __future__ import annotations

import sys
from collections.abc import Sequence


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
