"""The package that a comparison belongs to: the report's page has a section for each."""

from __future__ import annotations

from .. import plugins
from ..cards import Card
from .rows import DENSE
from .tables import Comparison

KERNELS = "kernels"
"""The section of kernels, which comes last."""


def home(comparison: Comparison) -> str:
    """``slim-infer``: the package of the method that is measured, of its task where that is unknown, else its name."""
    if comparison.task in plugins.kernels():
        return KERNELS
    cards = {**plugins.methods(), **plugins.recipes()}
    names = [arm.method for arm in comparison.arms if arm.method != DENSE]
    known = [cards[name] for name in names if name in cards]
    known.sort(key=lambda card: card.role != "method")
    if not known and comparison.task in plugins.tasks() and all(name not in cards for name in names):
        known = [plugins.tasks()[comparison.task]] if not names else []
    return _package(known[0]) if known else next(iter(names), comparison.task)


def summary(name: str) -> tuple[str, str]:
    """The summary and the paper of the method whose package is called `name`; empty where it is not installed."""
    card = plugins.methods().get(name)
    return (card.summary, card.paper or "") if card else ("", "")


def _package(card: Card) -> str:
    return card.target.partition(":")[0].partition(".")[0].removeprefix("fewstep_").replace("_", "-")
