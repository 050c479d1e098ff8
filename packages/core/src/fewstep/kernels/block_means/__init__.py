"""Mean of each run of consecutive tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive


def block_means(keys: Float[Tensor, "b g n d"], *, block: int, backend: str | None = None) -> Float[Tensor, "b g m d"]:
    """Mean of each run of `block` tokens.

        M_j = 1/|R_j| sum_{t in R_j} k_t      R_j = {t : t // block = j}

    Args:
        keys: keys, or queries, of any floating-point dtype; may be a view into a larger buffer.
        block: tokens in a run, at least 1.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device, see `Kernel.chosen_backend`.

    Returns:
        ``m = ceil(n / block)`` means in fp32, without gradient; a ragged last run is the mean of the tokens it has.

    Raises:
        ValueError: shape or size does not fit, or there is no such backend, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    if keys.ndim != 4 or keys.numel() == 0:
        raise ValueError(f"keys must be [b, g, n, d] and not empty, found {tuple(keys.shape)}")
    if block < 1:
        raise ValueError(f"block must be positive, found {block}")
    return KERNEL.function(backend or KERNEL.chosen_backend(keys.device))(keys.detach(), block=block)


def _cases() -> Iterator[Case]:
    """Ragged and whole runs, one token and one run, odd head sizes, a view of a buffer, token-major keys."""
    sizes = ((1, 2, 64, 64, 16), (2, 3, 77, 40, 8), (1, 1, 5, 17, 64), (2, 2, 131, 128, 128), (3, 1, 9, 24, 1))
    generator = torch.Generator().manual_seed(0)
    for row, (b, g, n, d, block) in enumerate(sizes):
        for column, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
            keys = torch.randn(b, g, n + 3, d, generator=generator).to(dtype)[:, :, :n]
            if (row + column) % 2:
                keys = keys.transpose(1, 2).contiguous().transpose(1, 2)
            yield Case(f"b{b} g{g} n{n} d{d} block{block} {str(dtype)[6:]}", (keys,), {"block": block})


KERNEL = Kernel(
    name="block-means",
    target=f"{__name__}:KERNEL",
    naive=naive.block_means,
    fast={"cpu": f"{__name__}.cpu:block_means", "triton": f"{__name__}.triton:block_means"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
)
