"""Difference between the similarities of tokens within a frame and those of a reference, fused with its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive


class TokenRelation(NamedTuple):
    """Result of `token_relation`; nothing of it is differentiable.

    `fewstep.kernels.weighted_residuals.with_gradient` makes a loss of it.
    """

    values: Float[Tensor, " n"]
    """One number for each frame."""
    gradient: Float[Tensor, "n s d"]
    """Derivative of each frame's number with respect to its tokens."""


def token_relation(
    tokens: Float[Tensor, "n s d"],
    reference: Float[Tensor, "n s d"],
    *,
    margin: float,
    backend: str | None = None,
) -> TokenRelation:
    """Mean difference of token similarities beyond a margin, for each frame (arXiv 2604.03118).

        r_n = mean_{p,q} relu(|A_pq - B_pq| - margin)      A_pq = cos(x_p, x_q)      B_pq = cos(y_p, y_q)

    Value and gradient come from one pass over tiles of A and B, which are never stored as a whole; nothing is left to
    do in the backward pass, and the reference is not kept for it.

    Args:
        tokens: ``x``, the tokens of each frame.
        reference: ``y``, of the same shape; may have another dtype.
        margin: differences up to it count as none, at least 0.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device and takes ``naive`` for float64.

    Returns:
        ``[n]`` in float32 (float64 where `tokens` is), and the shape and dtype of `tokens` (float32 for float16, which
        cannot hold a mean over many pairs). A token of length zero is similar to none, and has no gradient.

    Raises:
        ValueError: shapes do not fit, the margin is negative, or there is no such backend, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    if tokens.ndim != 3 or tokens.numel() == 0 or tokens.shape != reference.shape:
        shapes = f"{tuple(tokens.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"tokens and reference must have one shape [n, s, d] that is not empty, found {shapes}")
    if margin < 0:
        raise ValueError(f"margin must be 0 or more, found {margin}")
    chosen = backend or KERNEL.exact_backend(tokens)
    return TokenRelation(*KERNEL.function(chosen)(tokens.detach(), reference.detach(), margin=margin))


def _cases() -> Iterator[Case]:
    """Less and more than one tile of rows and of channels, one token, views, mixed dtypes, lengths far from 1."""
    shapes = ((2, 7, 5, 0.3), (1, 131, 24, 0.1), (2, 33, 32, 0.0), (1, 65, 19, 0.05), (2, 1, 3, 0.1))
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    generator = torch.Generator().manual_seed(0)
    for row, (n, s, d, margin) in enumerate(shapes):
        for column, dtype in enumerate(dtypes):
            other = dtypes[(row + column) % 3] if row % 2 else dtype
            shared = torch.randn(n, s, 2 * d, generator=generator)
            tokens = (30 * (shared + torch.randn(n, s, 2 * d, generator=generator))).to(dtype)
            name = f"n{n} s{s} d{d} {str(dtype)[6:]} {str(other)[6:]}"
            reference = shared.to(other)
            rounded = 2e-3 if dtype == torch.float16 else 0.0  # tiles of tokens that are multiplied with signs
            yield Case(name, (tokens[..., ::2], reference[..., ::2]), {"margin": margin}, rounded)


KERNEL = Kernel(
    name="token-relation",
    target=f"{__name__}:KERNEL",
    naive=naive.token_relation,
    fast={"cpu": f"{__name__}.cpu:token_relation", "triton": f"{__name__}.triton:token_relation"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
)
