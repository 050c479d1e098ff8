"""The correctness gate: at its identity setting a method must give what the unchanged model gives."""

from __future__ import annotations

import torch

from .task import Outcome

# Only reordered sums may differ. In float32 that is some 1e-5 of a logit, so 1e-4 leaves room for deep models and still
# sees one wrong token; half precisions round each sum to 2^-8 or 2^-11, which a few layers carry to 2 % of the largest.
_FLOAT32 = (1e-3, 1e-4)
_HALF_SHARE = 2e-2


def difference(outcome: Outcome, baseline: Outcome, dtype: str) -> str | None:
    """What tells the identity setting from the unchanged model, in a few words; None where they are equal."""
    if outcome.evidence is None or baseline.evidence is None:
        return "the task gives no evidence to compare"
    found, wanted = outcome.evidence.float(), baseline.evidence.float()
    if found.shape != wanted.shape:
        return f"shape {tuple(found.shape)} instead of {tuple(wanted.shape)}"
    relative, absolute = _tolerance(wanted, dtype)
    if torch.allclose(found, wanted, rtol=relative, atol=absolute):
        return None
    return f"differs by up to {(found - wanted).abs().max().item():.2g}"


def _tolerance(wanted: torch.Tensor, dtype: str) -> tuple[float, float]:
    if dtype in ("float32", "float64"):
        return _FLOAT32
    largest = wanted.abs().max().item() if wanted.numel() else 0.0
    return _HALF_SHARE, _HALF_SHARE * largest
