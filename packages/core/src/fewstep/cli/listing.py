"""``fewstep list``. Imports no torch."""

from __future__ import annotations

import sys

from .. import plugins
from ..cards import Card
from ..errors import FewstepError
from .table import show_table

KINDS = {
    "methods": plugins.methods,
    "models": plugins.loaders,
    "tasks": plugins.tasks,
    "recipes": plugins.recipes,
    "kernels": plugins.kernels,
}


def list_cards(words: list[str]) -> int:
    """Print all cards by kind; plug-ins that failed are named on stderr.

    Raises:
        FewstepError: there are arguments.
    """
    if words:
        if words[0] not in ("-h", "--help"):
            raise FewstepError(f"`fewstep list` takes no arguments, found {' '.join(words)!r}")
        print(
            "usage: fewstep list\n\nwhat is installed: methods, models, tasks, recipes and kernels, with their papers"
        )
        return 0
    for kind, collect in KINDS.items():
        cards = collect()
        if cards:
            show_table(kind, ("name", "what it is", "paper"), [_line(card) for card in cards.values()])
    print("`fewstep show NAME` tells more of one; `fewstep --help` lists the verbs")
    report_broken()
    return 0


def report_broken() -> None:
    """Name every plug-in that failed on stderr, one line each."""
    sys.stdout.flush()
    for broken in plugins.installed().broken:
        error = " ".join(broken.error.split())
        print(f"fewstep: plug-in {broken.name} ({broken.distribution}) failed: {error}", file=sys.stderr)


def _line(card: Card) -> tuple[str, str, str]:
    role = "" if card.role == "method" else f" ({card.role})"
    return card.name, card.summary + role, f"arXiv:{card.paper}" if card.paper else ""
