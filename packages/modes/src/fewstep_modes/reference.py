"""The unchanged model's answers on calibration data, and how far a method's are from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from fewstep import Applied
from fewstep.errors import FewstepError
from fewstep.families.moe import install
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .skipping import SkipCounts, Skipping

Loss = Literal["kl", "mse"]
NOISE = {"kl": 1e-9, "mse": 1e-12}
"""What rounding alone makes of a position: rows of a product differ in their last bit with the number of rows."""
Batch = Mapping[str, Any]
"""``inputs``: keyword arguments of the model; ``score_mask`` ``[B, S]``: where a token of an answer is predicted."""


def kl(dense: Float[Tensor, "n v"], other: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
    """``KL(dense || other)`` in nats of rows of log-probabilities: ``sum P0 (ln P0 - ln P)``."""
    return (dense.exp() * (dense - other)).sum(-1)


@dataclass(frozen=True)
class Measured:
    """A method on the calibration data."""

    divergence: float
    """Mean over scored positions: KL in nats, or squared difference of logits."""
    stats: SkipCounts


class Reference:
    """Scored logits of the unchanged model; only those positions are kept, in float32.

    Raises:
        FewstepError: nothing is scored.
    """

    def __init__(self, model: Any, batches: Iterable[Batch], *, loss: Loss = "kl", temperature: float = 1.0) -> None:
        self.model, self.batches = model, list(batches)
        self.loss, self.temperature = loss, temperature
        self.masks = [batch["score_mask"].to(model.device) for batch in self.batches]
        self.tokens = sum(int(mask.sum()) for mask in self.masks)
        if not self.tokens:
            raise FewstepError(
                "the calibration data scores no position: score_mask must be true where answers are predicted"
            )
        with Applied() as undo:  # by the same experts as the methods, so that no change is exactly no change
            install(undo, model)
            self.dense = [self._logits(number) for number in range(len(self.batches))]

    @torch.no_grad()
    def _logits(self, number: int) -> Float[Tensor, "n v"]:
        inputs = {k: v.to(self.model.device) for k, v in self.batches[number]["inputs"].items()}
        logits = self.model(**inputs, use_cache=False).logits[self.masks[number]].float()
        return (logits / self.temperature).log_softmax(-1) if self.loss == "kl" else logits

    def divergence(self, method: Skipping, number: int) -> float:
        """Sum over the scored positions of one batch; 0 where only rounding differs."""
        with method.apply(self.model):
            found = self._distance(number)
        return found if found > NOISE[self.loss] * int(self.masks[number].sum()) else 0.0

    def measure(self, method: Skipping) -> Measured:
        """`method` on all data, in one pass."""
        applied: Any = method.apply(self.model)
        with applied:
            total = sum(self._distance(number) for number in range(len(self.batches)))
            return Measured(total / self.tokens, applied.counts)

    def _distance(self, number: int) -> float:
        found, dense = self._logits(number), self.dense[number]
        each = kl(dense, found) if self.loss == "kl" else F.mse_loss(found, dense, reduction="none").mean(-1)
        return each.double().sum().item()


def fingerprint(batches: Sequence[Batch]) -> list[float]:
    """Numbers that differ between different data: batches, tokens, and a sum over their ids."""
    ids = [batch["inputs"]["input_ids"].double().flatten() for batch in batches]
    weighted = sum(float((one * torch.arange(1, len(one) + 1)).sum()) for one in ids)
    return [len(ids), sum(len(one) for one in ids), weighted]
