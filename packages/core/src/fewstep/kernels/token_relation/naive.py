"""The specification of `fewstep.kernels.token_relation`, in plain PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def token_relation(
    tokens: Float[Tensor, "n s d"], reference: Float[Tensor, "n s d"], *, margin: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n s d"]]:
    """``mean_{p,q} relu(|A_pq - B_pq| - margin)`` of the cosines A of `tokens` and B of `reference`, and its gradient.

        dr/da_p = 2/s^2 sum_q sign(A_pq - B_pq) [|A_pq - B_pq| > margin] a_q       a_p = x_p / |x_p|
        dr/dx_p = (dr/da_p - a_p (a_p . dr/da_p)) / |x_p|

    Computed in float32, or in float64 where `tokens` is. Returns a number for each frame, and the gradient in
    `gradient_dtype`.
    """
    wide = torch.promote_types(tokens.dtype, torch.float32)
    inverse, other = inverse_lengths(tokens).to(wide), inverse_lengths(reference).to(wide)
    unit, like = inverse[..., None] * tokens.to(wide), other[..., None] * reference.to(wide)
    difference = unit @ unit.mT - like @ like.mT
    beyond = difference.abs() - margin
    slope = 2 / tokens.shape[1] ** 2 * ((difference.sign() * (beyond > 0)) @ unit)
    gradient = inverse[..., None] * (slope - unit * (unit * slope).sum(-1, keepdim=True))
    return beyond.relu().mean((1, 2)), gradient.to(gradient_dtype(tokens))


def gradient_dtype(tokens: Float[Tensor, "*n d"]) -> torch.dtype:
    """That of the tokens; float32 for float16, in which the gradient of a mean over many pairs is zero."""
    return torch.float32 if tokens.dtype == torch.float16 else tokens.dtype


def inverse_lengths(tokens: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """``1 / |x|`` of each token in float32 or float64; 0 for a token of length zero."""
    wide = torch.promote_types(tokens.dtype, torch.float32)
    length = torch.linalg.vector_norm(tokens, dim=-1, dtype=wide)
    return torch.where(length == 0, 0.0, 1 / length)
