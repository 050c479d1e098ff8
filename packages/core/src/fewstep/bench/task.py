"""The protocol of tasks, which measure a model or its training, and the outcome of one run. Imports no torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch

    from ..contract import Loaded


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An output that a person can look at, shown side by side in the report."""

    title: str
    """The question or the prompt, the same for every arm."""
    text: str | None = None
    """The output, where it is text."""
    file: str | None = None
    """Path of an image, GIF or WebP, where it is not."""
    image: bytes | None = None
    """The same as its content: the bytes of a PNG, GIF or WebP file."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Times, metrics and samples of one run of a task on one arm (the dense model or a method)."""

    seconds: dict[str, float]
    """Waiting times of a user by name: ``{"ttft": 3.2, "decode": 0.8}``. Each becomes a metric and a ratio."""
    quality: dict[str, float] = field(default_factory=dict)
    """Quality metrics: ``{"accuracy": 0.92}``; refused on random weights."""
    counts: dict[str, float] = field(default_factory=dict)
    """Sizes that do not depend on the machine, named with their unit: ``{"kv_bytes": 1.2e6}``."""
    evidence: torch.Tensor | None = None
    """Output that must be equal at the identity setting and that `Task.compare` reads: logits, frames. On the CPU."""
    samples: tuple[Sample, ...] = ()
    """A few outputs for the report."""


class Task(Protocol):
    """A dataclass (its fields are the flags of ``fewstep bench``) that runs a model and scores its output.

    A class attribute ``extra_baselines`` may name, for some of its times, arms that they are compared with besides the
    unchanged model, where these run too: ``{"decode": ("best-rival",)}`` gives ``decode_vs_best_rival_speedup``.
    """

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Make inputs from `generator`, run the model, take the waiting times, score the output."""

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Quality relative to the baseline's outcome on the same inputs (KL, agreement); may be empty."""

    def small(self) -> Any:
        """The same task at a size that takes seconds: the warm-up and the correctness gate run it."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask(ABC):
    """A task for recipes: seconds of training until the baseline's best quality; subclasses give metric and scorer.

    Raises:
        ValueError: `every` is not positive, or more than `seconds`.
    """

    metric: ClassVar[str]
    """Quality metric that decides; lower is better."""
    seconds: float = 120.0
    """Training time of each recipe; scoring is not counted."""
    every: float = 10.0
    """Training time between two scorings."""

    def __post_init__(self) -> None:
        if not 0 < self.every <= self.seconds:
            raise ValueError(f"every must be positive and at most seconds, found {self.every} and {self.seconds}")

    @property
    def marks(self) -> list[float]:
        """Training times of the scorings; the last is `seconds`."""
        return [min(self.seconds, (i + 1) * self.every) for i in range(math.ceil(self.seconds / self.every - 1e-9))]

    @abstractmethod
    def scorer(self) -> Task:
        """The task that runs and scores the model, trained or not."""
