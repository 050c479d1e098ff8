"""Losses that compare a sample with a critic's and a teacher's clean prediction, fused with their gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive

WEIGHTS = ("official", "paper")


class Matched(NamedTuple):
    """What `match_loss` finds; nothing of it is differentiable. `carry` makes a loss of it."""

    normaliser: Float[Tensor, " b"]
    """``n``, the mean of ``|x - T|``."""
    fisher: Float[Tensor, " b"]
    """``1/2 w_F mean (u - T)^2``."""
    residual: Float[Tensor, " b"]
    """``1/2 w_N mean (x - u)^2``; the negative residual is minus this."""
    gradient: Float[Tensor, "b ..."]
    """Of ``mean(fisher - lam * residual)`` with respect to the critic's prediction."""


def match_loss(
    x: Float[Tensor, "b ..."],
    critic: Float[Tensor, "b ..."],
    teacher: Float[Tensor, "b ..."],
    sigma: Float[Tensor, " b"],
    *,
    lam: float = 0.0,
    weights: Literal["official", "paper"] = "official",
    backend: str | None = None,
) -> Matched:
    """Fisher and residual losses of three clean predictions, and their gradient (SGMD, arXiv 2605.30116).

        n = mean |x - T|      F = 1/2 w_F mean (u - T)^2      R = 1/2 w_N mean (x - u)^2
        d mean(F - lam R) / du = (w_F (u - T) + lam w_N (x - u)) / N

    With ``lam = 0`` and official weights the gradient is also that of DMD2 (arXiv 2405.14867) with respect to ``x``.

    Args:
        x: samples of the student, any number of dimensions after the batch.
        critic: ``u``, what the critic makes of the noised samples.
        teacher: ``T``, what the teacher makes of them.
        sigma: noise levels in (0, 1].
        lam: share of the negative residual.
        weights: ``official``: ``w_F = 1 / (n + 1e-8)``, ``w_N = 1 / sigma``; ``paper``: ``(1 - sigma)^2 / sigma^4``, 1.
        backend: ``naive`` or ``triton``; None picks by device and takes ``naive`` for float64.

    Raises:
        ValueError: shapes or names do not fit, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    _validate(x, critic, teacher, sigma, weights)
    backend = backend or ("naive" if x.dtype == torch.float64 else chosen_backend(x.device))
    tensors = (tensor.detach() for tensor in (x, critic, teacher, sigma.to(x.device)))
    return Matched(*KERNEL.function(backend)(*tensors, lam=lam, weights=weights))


def carry(value: Float[Tensor, ""], gradient: Float[Tensor, "b ..."], tensor: Float[Tensor, "b ..."]) -> Tensor:
    """`value`, with `gradient` as its gradient with respect to `tensor`."""
    return _Carry.apply(value, gradient, tensor)


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: Tensor, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = tensor.dtype
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, None, Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, None, (outer[0] * gradient).to(ctx.dtype)


def _validate(x: Tensor, critic: Tensor, teacher: Tensor, sigma: Tensor, weights: str) -> None:
    if x.ndim < 2 or x.numel() == 0 or x.shape != critic.shape or x.shape != teacher.shape:
        found = ", ".join(str(tuple(tensor.shape)) for tensor in (x, critic, teacher))
        raise ValueError(f"x, critic and teacher must have one shape [b, ...] that is not empty, found {found}")
    if sigma.shape != x.shape[:1]:
        raise ValueError(f"sigma must be one number for each of {x.shape[0]} samples, found {tuple(sigma.shape)}")
    if weights not in WEIGHTS:
        raise ValueError(f"unknown weights {weights!r}; supported: {', '.join(WEIGHTS)}")


def _cases() -> Iterator[Case]:
    """Odd sizes, less and more than one block, a whole number of blocks, mixed dtypes, views, both weights."""
    shapes = ((3, 1, 7, 5, 3), (2, 2049), (1, 4, 2, 16, 16), (2, 3, 5, 17, 19), (4, 1))
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    generator = torch.Generator().manual_seed(0)
    for row, shape in enumerate(shapes):
        for column, (lam, weights) in enumerate(((0.1, "official"), (0.0, "official"), (0.5, "paper"))):
            sample, other = dtypes[(row + column) % 3], dtypes[(row * column) % 3]
            x, critic, teacher = (torch.randn(*shape[:-1], 2 * shape[-1], generator=generator) for _ in range(3))
            sigma = 0.02 + 0.96 * torch.rand(shape[0], generator=generator)
            args = (x.to(sample)[..., ::2], critic.to(other)[..., ::2], teacher.to(other)[..., 1::2], sigma)
            name = f"{'x'.join(map(str, shape))} {str(sample)[6:]} {str(other)[6:]} lam{lam} {weights}"
            yield Case(name, args, {"lam": lam, "weights": weights})


KERNEL = Kernel(
    name="match-loss",
    target=f"{__name__}:KERNEL",
    naive=naive.match_loss,
    fast={"triton": f"{__name__}.triton:match_loss"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
)

chosen_backend = KERNEL.chosen_backend
