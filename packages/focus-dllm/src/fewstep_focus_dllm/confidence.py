"""Do past confidences tell what is unmasked next? The claim that Focus-dLLM rests on (arXiv 2602.02159), in figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from .state import Trace


def correlation(trace: Sequence[Trace]) -> float:
    """Pearson correlation of confidences at adjacent steps of a block, over positions masked at both; mean over steps.

    Steps with fewer than three such positions, or without variance, tell nothing; NaN where all are such.
    """
    found = []
    for before, after in _steps(trace):
        for row, masked in enumerate(after.masked):
            pair = torch.stack([before.confidence[row, masked], after.confidence[row, masked]])
            if masked.sum() >= 3 and (pair.std(1) > 0).all():
                found.append(torch.corrcoef(pair)[0, 1].item())
    return sum(found) / len(found) if found else float("nan")


def coverage(trace: Sequence[Trace], count: int) -> float:
    """Share of unmasked tokens that were among the `count` surest masks at the step before (coverage@k)."""
    hits = total = 0
    for before, after in _steps(trace):
        ranked = before.confidence.masked_fill(~after.masked, -torch.inf)
        rank = ranked.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        hits += int((after.unmasked & (rank < count)).sum())
        total += int(after.unmasked.sum())
    return hits / total if total else float("nan")


def _steps(trace: Sequence[Trace]) -> Iterator[tuple[Trace, Trace]]:
    """Adjacent steps of one block: what is masked only shrinks inside it."""
    for before, after in pairwise(trace):
        if before.masked.shape == after.masked.shape and not (after.masked & ~(before.masked & ~before.unmasked)).any():
            yield before, after
