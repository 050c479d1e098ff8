"""`Race`: a task for training. Imports no torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ..bench.task import Task


@dataclass(frozen=True, kw_only=True)
class Race(ABC):
    """Seconds of training until the baseline's best quality; subclasses say what is scored, and how."""

    metric: ClassVar[str]
    """Figure of quality that decides; lower is better."""
    seconds: float = 120.0
    """Training time of each recipe; scoring is not counted."""
    every: float = 10.0
    """Training time between two scorings."""

    def __post_init__(self) -> None:
        if not 0 < self.every <= self.seconds:
            raise ValueError(f"every must be positive and at most seconds, found {self.every} and {self.seconds}")

    @property
    def marks(self) -> list[float]:
        """Training times at which is scored; the last is `seconds`."""
        return [min(self.seconds, (i + 1) * self.every) for i in range(math.ceil(self.seconds / self.every - 1e-9))]

    @abstractmethod
    def scorer(self) -> Task:
        """What runs and scores the model, trained or not."""
