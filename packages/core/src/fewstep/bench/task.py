"""`Task`: a way to measure a model. `Outcome`: what one run of it yields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from ..contract import Loaded


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An output that a person can look at, shown side by side in the report."""

    title: str
    """What was asked, the same for every arm: the question, the prompt."""
    text: str | None = None
    """The output, where it is text."""
    file: str | None = None
    """Path of an image, GIF or WebP, where it is not."""
    image: bytes | None = None
    """The same as its content: what a PNG, GIF or WebP file holds."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run of a task yields for one arm (the dense baseline or a method)."""

    seconds: dict[str, float]
    """What a user waits for, by name: ``{"ttft": 3.2, "decode": 0.8}``. Each becomes a metric and a ratio."""
    quality: dict[str, float] = field(default_factory=dict)
    """Figures of quality: ``{"accuracy": 0.92}``; refused on random weights."""
    counts: dict[str, float] = field(default_factory=dict)
    """Sizes that do not depend on the machine, named with their unit: ``{"kv_bytes": 1.2e6}``."""
    evidence: torch.Tensor | None = None
    """What must be equal at the identity setting and what `Task.compare` reads: logits, frames. Kept on the CPU."""
    samples: tuple[Sample, ...] = ()
    """A few outputs for the report."""


class Task(Protocol):
    """A dataclass (its fields are the flags of ``fewstep bench``) that runs a model and scores what it gave.

    A class attribute ``beside`` may name, for some of its times, arms that they are compared with where these run too,
    besides the unchanged model: ``{"decode": ("best-peer",)}`` gives ``decode_vs_best_peer_speedup``.
    """

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Make inputs from `generator`, run the model, time what users wait for, score the output."""

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Quality relative to the baseline's outcome on the same inputs (KL, agreement); may be empty."""

    def small(self) -> Any:
        """The same task at a size that takes seconds: the warm-up and the correctness gate run it."""
