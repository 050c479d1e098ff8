"""Mean squared distances of a tensor to two references, fused with the gradient of their weighted sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive


class Residuals(NamedTuple):
    """Result of `weighted_residuals`; nothing of it is differentiable. `with_gradient` makes a loss of it."""

    first: Float[Tensor, " b"]
    """``mean (u - first)^2`` of each sample."""
    second: Float[Tensor, " b"]
    """``mean (u - second)^2`` of each sample."""
    gradient: Float[Tensor, "b *dims"]
    """Of the mean over samples of half the weighted sum, with respect to ``u``."""


def weighted_residuals(
    u: Float[Tensor, "b *dims"],
    first: Float[Tensor, "b *dims"],
    second: Float[Tensor, "b *dims"],
    first_weight: Float[Tensor, " b"],
    second_weight: Float[Tensor, " b"],
    *,
    backend: str | None = None,
) -> Residuals:
    """Mean squared distances to two references, and the gradient of half their weighted sum.

        r_i = mean (u - a_i)^2      d/du mean_b 1/2 (w_1 r_1 + w_2 r_2) = (w_1 (u - a_1) + w_2 (u - a_2)) / N

    with means over all dimensions but the batch, and ``N`` the number of all elements.

    Args:
        u: the tensor that the gradient is for, any number of dimensions after the batch.
        first: ``a_1``, of the shape of `u`; may have another dtype.
        second: ``a_2``, the same.
        first_weight: ``w_1``, one finite number for each sample, of either sign.
        second_weight: ``w_2``, the same.
        backend: ``naive`` or ``triton``; None picks by device and takes ``naive`` for float64.

    Returns:
        ``[b]``, ``[b]`` and the shape of `u`, in float32 (float64 where `u` is).

    Raises:
        ValueError: shapes do not fit, or there is no such backend, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    if u.ndim < 2 or u.numel() == 0 or u.shape != first.shape or u.shape != second.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (u, first, second))
        raise ValueError(f"u, first and second must have one shape [b, ...] that is not empty, found {shapes}")
    if first_weight.shape != u.shape[:1] or second_weight.shape != u.shape[:1]:
        shapes = f"{tuple(first_weight.shape)} and {tuple(second_weight.shape)}"
        raise ValueError(f"weights must be one number for each of {len(u)} samples, found {shapes}")
    tensors = (tensor.detach() for tensor in (u, first, second, first_weight, second_weight))
    return Residuals(*KERNEL.function(backend or KERNEL.exact_backend(u))(*tensors))


def with_gradient(
    value: Float[Tensor, ""], gradient: Float[Tensor, "*dims"], tensor: Float[Tensor, "*dims"]
) -> Float[Tensor, ""]:
    """`value` as a function of `tensor` whose gradient is `gradient`; the gradient gets the dtype of `tensor`."""
    return _WithGradient.apply(value, gradient, tensor)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: Tensor, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = tensor.dtype
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, None, Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, None, (outer[0] * gradient).to(ctx.dtype)


def _cases() -> Iterator[Case]:
    """Odd sizes, less and more than one block, a whole number of blocks, mixed dtypes, views, weights of any sign."""
    shapes = ((3, 1, 7, 5, 3), (2, 2049), (1, 4, 2, 16, 16), (2, 3, 5, 17, 19), (4, 1))
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    generator = torch.Generator().manual_seed(0)
    for row, shape in enumerate(shapes):
        for column, second in enumerate((-0.1, 0.0, 3.0)):
            kinds = dtypes[row * column % 3], dtypes[(row + column) % 3]
            wide = (*shape[:-1], 2 * shape[-1])
            u, one, two = (torch.randn(wide, generator=generator).to(kinds[number > 1]) for number in range(3))
            weights = (scale * (0.02 + torch.rand(shape[0], generator=generator)) for scale in (1.0, second))
            name = f"{'x'.join(map(str, shape))} {str(kinds[0])[6:]} {str(kinds[1])[6:]} second weight {second:g}"
            yield Case(name, (u[..., ::2], one[..., 1::2], two[..., ::2], *weights), {})


KERNEL = Kernel(
    name="weighted-residuals",
    target=f"{__name__}:KERNEL",
    naive=naive.weighted_residuals,
    fast={"triton": f"{__name__}.triton:weighted_residuals"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
)
