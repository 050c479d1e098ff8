"""Mean absolute difference of two tensors for each sample, in one pass over both."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive


def mean_abs_difference(
    x: Float[Tensor, "b *dims"], y: Float[Tensor, "b *dims"], *, backend: str | None = None
) -> Float[Tensor, " b"]:
    """Mean absolute difference of each sample.

        n_b = mean |x_b - y_b|      over all dimensions but the batch

    Args:
        x: one tensor, any number of dimensions after the batch.
        y: the other, of the same shape; may have another dtype.
        backend: ``naive`` or ``triton``; None picks by device and takes ``naive`` for float64.

    Returns:
        ``[b]``, at least 0, in float32 (float64 where `x` is), without gradient.

    Raises:
        ValueError: shapes do not fit, or there is no such backend, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    if x.ndim < 2 or x.numel() == 0 or x.shape != y.shape:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"both must have one shape [b, ...] that is not empty, found {shapes}")
    return KERNEL.function(backend or KERNEL.exact_backend(x))(x.detach(), y.detach())


def _cases() -> Iterator[Case]:
    """Odd sizes, less and more than one block, a whole number of blocks, mixed dtypes, views."""
    shapes = ((3, 1, 7, 5, 3), (2, 2049), (1, 4, 2, 16, 16), (2, 3, 5, 17, 19), (4, 1))
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    generator = torch.Generator().manual_seed(0)
    for row, shape in enumerate(shapes):
        for column in range(2):
            kinds = dtypes[(row + column) % 3], dtypes[row * column % 3]
            x, y = (torch.randn(*shape[:-1], 2 * shape[-1], generator=generator).to(kind) for kind in kinds)
            name = f"{'x'.join(map(str, shape))} {str(x.dtype)[6:]} {str(y.dtype)[6:]}"
            yield Case(name, (x[..., ::2], y[..., 1::2]), {})


KERNEL = Kernel(
    name="mean-abs-difference",
    target=f"{__name__}:KERNEL",
    naive=naive.mean_abs_difference,
    fast={"triton": f"{__name__}.triton:mean_abs_difference"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
)
