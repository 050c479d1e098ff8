"""The correctness gate: at its identity setting a method must give the output of the unchanged model."""

from __future__ import annotations

import torch

from .task import Outcome

# Only reordered sums may differ. In float32 that is some 1e-5 of a logit, so 1e-4 leaves room for deep models and still
# sees one wrong token; half precisions round each sum to 2^-8 or 2^-11, which a few layers carry to 2 % of the largest.
_FLOAT32 = (1e-3, 1e-4)
_HALF_SHARE = 2e-2


def difference(outcome: Outcome, baseline: Outcome, dtype: str) -> str | None:
    """The difference of the identity setting from the unchanged model, in a few words; None where they are equal."""
    if outcome.evidence is None or baseline.evidence is None:
        return "the task gives no evidence to compare"
    actual, expected = outcome.evidence.float(), baseline.evidence.float()
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    relative, absolute = _tolerance(expected, dtype)
    if torch.allclose(actual, expected, rtol=relative, atol=absolute):
        return None
    return f"differs by up to {(actual - expected).abs().max().item():.2g}"


def _tolerance(expected: torch.Tensor, dtype: str) -> tuple[float, float]:
    if dtype in ("float32", "float64"):
        return _FLOAT32
    largest = expected.abs().max().item() if expected.numel() else 0.0
    return _HALF_SHARE, _HALF_SHARE * largest
