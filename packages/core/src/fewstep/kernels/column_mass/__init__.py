"""Attention that each key receives from a few query rows: the score by which attention sinks are found."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.kernels import Case, Kernel
from fewstep.kernels.attention import check_shapes

from . import naive


def column_mass(
    query: Float[Tensor, "b h a d"],
    key: Float[Tensor, "b g n d"],
    *,
    row_weights: Float[Tensor, "b a"] | None = None,
    key_mask: Bool[Tensor, "b n"] | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Float[Tensor, "b n"]:
    """Sum over rows of weight times mean over heads of the attention that each key receives.

        S_j = sum_a w_a  1/h sum_i softmax_j(scale <q_{i,a}, k_{g(i),j}>)

    This is the attention-sink score of Focus-dLLM (arXiv 2602.02159).

    Args:
        query: post-RoPE queries of a few rows; head ``i`` reads KV head ``i // (h / g)``.
        key: post-RoPE keys; may be a view into a larger buffer.
        row_weights: ``w``; None for ``1 / a``. Rows of weight 0 are as good as absent.
        key_mask: True where the softmax may look; None for everywhere. Other keys receive 0.
        scale: of the scores; None for ``1 / sqrt(d)``.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device, see `chosen_backend`.

    Returns:
        One number for each key, in fp32, without gradient; without a mask they sum to ``sum_a w_a``.

    Raises:
        ValueError: shapes or dtypes do not fit, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    check_shapes(query, key)
    rows, keys = (query.shape[0], query.shape[2]), (key.shape[0], key.shape[2])
    if row_weights is not None and row_weights.shape != rows:
        raise ValueError(f"row_weights must be {list(rows)}, one for each row, found {list(row_weights.shape)}")
    if key_mask is not None and (key_mask.shape != keys or key_mask.dtype != torch.bool):
        found = f"{list(key_mask.shape)} of {key_mask.dtype}"
        raise ValueError(f"key_mask must be {list(keys)} of torch.bool, found {found}")
    function = KERNEL.function(backend or chosen_backend(query.device))
    return function(query.detach(), key.detach(), row_weights=row_weights, key_mask=key_mask, scale=scale)


def _cases() -> Iterator[Case]:
    """GQA 1 to 4, odd head sizes and lengths, one row, weights, masks and a sequence that is masked as a whole."""
    sizes = (
        (1, 4, 4, 8, 130, 64),
        (2, 6, 2, 5, 77, 40),
        (2, 4, 1, 1, 33, 96),
        (1, 2, 1, 19, 97, 128),
        (3, 2, 2, 3, 1, 17),
    )
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    generator = torch.Generator().manual_seed(0)
    for row, (b, h, g, a, n, d) in enumerate(sizes):
        for column in range(2):
            dtype = dtypes[(row + column) % 3]
            query = torch.randn(b, h, a, d, generator=generator).to(dtype)
            key = torch.randn(b, g, n + 3, d, generator=generator).to(dtype)[:, :, :n]
            options = {}
            if column:
                mask = torch.rand(b, n, generator=generator) < 0.7
                mask[-1] &= b < 2
                options = {"row_weights": torch.rand(b, a, generator=generator), "key_mask": mask, "scale": 0.2}
            name = f"b{b} h{h} g{g} a{a} n{n} d{d} {str(dtype)[6:]}{' weights mask' if column else ''}"
            yield Case(name, (query, key), options)


KERNEL = Kernel(
    name="column-mass",
    target=f"{__name__}:KERNEL",
    naive=naive.column_mass,
    fast={"cpu": f"{__name__}.cpu:column_mass"},
    cases=_cases,
)

chosen_backend = KERNEL.chosen_backend
