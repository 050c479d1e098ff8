"""Token relations on a CPU: some rows of a few frames at a time, so that their similarities stay in cache."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .naive import gradient_dtype, inverse_lengths

CELLS = 1 << 18
"""Similarities that are held at a time, 1 MB of them."""
ROWS = 128
"""Most rows of a frame among them."""


def token_relation(
    tokens: Float[Tensor, "n s d"], reference: Float[Tensor, "n s d"], *, margin: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n s d"]]:
    """Same as `fewstep.kernels.token_relation.naive.token_relation`, in float32."""
    frames = max(1, CELLS // (min(ROWS, tokens.shape[1]) * tokens.shape[1]))
    gradient = torch.empty(tokens.shape, dtype=gradient_dtype(tokens))
    values = torch.empty(len(tokens))
    for start in range(0, len(tokens), frames):
        some = slice(start, start + frames)
        inverse, like = (inverse_lengths(each[some])[..., None] for each in (tokens, reference))
        unit = (inverse * tokens[some]).float()
        values[some], slope = _frames(unit, (like * reference[some]).float(), margin)
        gradient[some] = slope.sub_(unit * (unit * slope).sum(-1, keepdim=True)).mul_(inverse)
    return values, gradient


def _frames(
    unit: Float[Tensor, "n s d"], like: Float[Tensor, "n s d"], margin: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n s d"]]:
    """Numbers of some frames, and their gradients with respect to the tokens of length 1."""
    slope, totals, size = torch.empty_like(unit), torch.zeros(len(unit)), unit.shape[1]
    for first in range(0, size, ROWS):
        rows = slice(first, first + ROWS)
        difference = torch.baddbmm(unit[:, rows] @ unit.mT, like[:, rows], like.mT, alpha=-1)
        beyond = F.softshrink(difference, margin)  # sign(D) relu(|D| - margin)
        totals += beyond.abs().sum((1, 2))
        slope[:, rows] = beyond.sign_() @ unit
    return totals / size**2, slope.mul_(2 / size**2)
