"""Comparisons of tests with surroundings: equal answers of a model, and refusals of one sentence."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FewstepError


def one_sentence(refusal: FewstepError) -> None:
    """Check that a refusal is one line that says something."""
    assert "\n" not in str(refusal) and len(str(refusal)) > 20


def same(one: Tensor, other: Tensor) -> bool:
    """Equal up to the rounding of another order of sums."""
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-5)
