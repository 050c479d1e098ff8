"""The report's first table: of every method and kind of hardware the setting that gains most and keeps the quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import plugins
from .formatting import QUALITY, SPEEDUP, amount, heading, verdict
from .pareto import IDENTITY
from .readme import KEPT, keeps_quality, memory, words
from .rows import DENSE, Row
from .tables import DIRTY_MARK, TELLING, Arm, Comparison, quality_metric, speed_metric

MARGIN = f"{1 - KEPT:.0%} of dense"
"""How far the quality may fall, in words."""

FEWEST = 32
"""New tokens of an answer, at least, whose quality says something."""


@dataclass(frozen=True)
class Line:
    """One setting of one method as a reader meets it: what it gains beside what it costs."""

    comparison: Comparison
    arm: Arm

    @property
    def title(self) -> str:
        """The method's name, with a dagger where the checkout was dirty."""
        return f"{self.arm.method} {DIRTY_MARK}" if self.arm.run.dirty else self.arm.method

    @property
    def setting(self) -> str:
        """Fields that differ from the default, in words."""
        return ", ".join(words(name, value) for name, value in self.arm.first.config.items()) or "default settings"

    @property
    def speed(self) -> Row | None:
        """The row of the telling speed-up."""
        return self.arm.rows.get(speed_metric(self.comparison) or "")

    @property
    def against(self) -> str:
        """What the speed-up is of, and against what: ``time to first token, against dense``."""
        if self.speed is None:
            return ""
        other = (self.speed.baseline or DENSE).removesuffix(f"-{self.comparison.setting.dtype}")
        return f"{heading(self.speed.metric.removesuffix(SPEEDUP))}, against {other}"

    @property
    def quality(self) -> Row | None:
        """The row of the most telling quality metric; None of answers too short to tell."""
        if self.comparison.params.get("new_tokens", FEWEST) < FEWEST:
            return None
        return self.arm.rows.get(quality_metric(self.comparison) or "")

    @property
    def reference(self) -> float | None:
        """The quality of the dense model."""
        metric = quality_metric(self.comparison) or ""
        return self.arm.dense[metric].value if metric in self.arm.dense else IDENTITY.get(metric)

    @property
    def beside(self) -> str:
        """``dense 0.9483``, where the quality of the dense model was measured or is known by definition."""
        metric = quality_metric(self.comparison) or ""
        if metric in self.arm.dense:
            return f"dense {amount(self.arm.dense[metric])}"
        return "" if self.reference is None else f"dense {self.reference:g}"

    @property
    def change(self) -> float | None:
        """Relative change of the quality against dense; None where it is not known."""
        if self.quality is None or not self.reference:
            return None
        return self.quality.value / self.reference - 1

    @property
    def kept(self) -> bool:
        """True where the quality holds within `MARGIN`."""
        return self.quality is not None and keeps_quality(self.comparison, self.arm)

    @property
    def task(self) -> str:
        """``needle, 4,096 tokens``."""
        length = self.comparison.params.get("length")
        return self.comparison.task + (f", {length:,} tokens" if isinstance(length, int) else "")

    @property
    def state(self) -> str:
        """``kept``, ``lost``, or ``unknown`` where no quality was measured."""
        return "kept" if self.kept else "unknown" if self.quality is None or self.reference is None else "lost"

    @property
    def verdict(self) -> str:
        """``gain`` only where every repeat is faster and the quality holds; ``loss`` where every repeat is slower."""
        said = verdict(self.speed) if self.speed else ""
        return "" if said == "gain" and not self.kept else said

    @property
    def memory(self) -> str:
        """``KV memory 0.58x``."""
        return memory(self.arm)


def best_lines(comparisons: Sequence[Comparison]) -> list[Line]:
    """A line for each method and kind of hardware, on trained weights; baselines, ablations and kernels are left out.

    Where no setting keeps the quality, the one that stays nearest is shown.
    """
    best: dict[tuple[str, str], Line] = {}
    for line in all_lines(comparisons):
        key = line.arm.method, line.comparison.setting.hardware
        if line.speed and line.quality and not line.comparison.random and key[0] not in aside():
            best[key] = max(best.get(key, line), line, key=rank)
    return [best[key] for key in sorted(best)]


def all_lines(comparisons: Sequence[Comparison]) -> list[Line]:
    """Every arm but the dense ones, of all tasks but the kernels'."""
    kernels = plugins.kernels()
    return [
        Line(comparison, arm)
        for comparison in comparisons
        if comparison.task not in kernels
        for arm in comparison.arms
        if arm.method != DENSE
    ]


def aside() -> set[str]:
    """Names of baselines and ablations, and the dense model."""
    cards = {**plugins.methods(), **plugins.recipes()}
    return {DENSE, *(name for name, card in cards.items() if card.role != "method")}


def rank(line: Line) -> tuple[bool, float, bool, bool, bool, float]:
    """Larger for the better line: quality kept, else near to dense; then clean, telling, repeated, and fast."""
    metric, row = speed_metric(line.comparison) or "", line.speed
    surely = row.spread[0] if row and row.spread else row.value if row else 0.0
    near = 0.0 if line.kept else _nearness(line)
    telling = metric.removesuffix(SPEEDUP) in TELLING
    return line.kept, near, not line.arm.run.dirty, telling, bool(row and row.spread), surely


def _nearness(line: Line) -> float:
    change = line.change
    return -1e9 if change is None else change if QUALITY[quality_metric(line.comparison) or ""] else -change
