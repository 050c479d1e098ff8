"""Discrepancies between the tokens of a sample and those of a reference, frame by frame: TRD and three forms of MMD.

``a_p`` and ``b_p`` are the tokens of a frame of the sample and of the reference, of length 1; all means are over the
tokens of a frame, then over frames. No gradient goes to the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from fewstep.kernels.token_relation import token_relation
from fewstep.kernels.weighted_residuals import with_gradient
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Tokens = Float[Tensor, "n s d"]
"""Tokens of n frames."""
Pairs = Float[Tensor, "n s t"]
"""One number for each pair of tokens of a frame."""


def relation_distance(tokens: Tokens, reference: Tokens, *, margin: float = 0.1) -> Float[Tensor, ""]:
    """``mean relu(|a_p . a_q - b_p . b_q| - margin)``: token-relation distillation (TRD, arXiv 2604.03118).

    Only relations within a frame count, so that a rotation of all its tokens is free. Its gradient comes with its value
    (`fewstep.kernels.token_relation`), and no matrix of all pairs is stored.
    """
    values, gradient = token_relation(tokens, reference, margin=margin)
    return with_gradient(values.mean(), gradient / len(gradient), tokens)


def mean_discrepancy(tokens: Tokens, reference: Tokens) -> Float[Tensor, ""]:
    """``|mean a - mean b|^2``, the squared maximum mean discrepancy (MMD) of the linear kernel."""
    gap = F.normalize(tokens.float(), dim=-1).mean(1) - F.normalize(reference.detach().float(), dim=-1).mean(1)
    return gap.square().sum(-1).mean()


def gaussian_discrepancy(tokens: Tokens, reference: Tokens) -> Float[Tensor, ""]:
    """Squared MMD of ``k(x, y) = exp(-|x - y|^2 / h)``, ``h`` the mean squared distance between both sets; S x S."""
    own, other = F.normalize(tokens.float(), dim=-1), F.normalize(reference.detach().float(), dim=-1)
    across = _squared(own, other)
    width = across.detach().mean((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return _discrepancy(lambda x, y: torch.exp(-_squared(x, y) / width), own, other)


def energy_discrepancy(tokens: Tokens, reference: Tokens) -> Float[Tensor, ""]:
    """Energy distance ``2 E|a - b| - E|a - a'| - E|b - b'|``, the squared MMD of ``k(x, y) = -|x - y|``; S x S."""
    own, other = F.normalize(tokens.float(), dim=-1), F.normalize(reference.detach().float(), dim=-1)
    exact = "donot_use_mm_for_euclid_dist"  # the fast way has no gradient at distances of 0
    return _discrepancy(lambda x, y: -torch.cdist(x, y, compute_mode=exact), own, other)


def _discrepancy(kernel: Callable[[Tokens, Tokens], Pairs], own: Tokens, other: Tokens) -> Float[Tensor, ""]:
    """``E k(a, a') + E k(b, b') - 2 E k(a, b)``."""
    return kernel(own, own).mean() + kernel(other, other).mean() - 2 * kernel(own, other).mean()


def _squared(x: Tokens, y: Tokens) -> Pairs:
    """Squared distances of tokens of length 1."""
    return (2 - 2 * x @ y.mT).clamp_min(0)
