"""Score of each block of keys by the best of its units, small runs represented by their mean key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive

SCORES = ("dot", "abs_dot", "unit_softmax")


def unit_score(
    query: Float[Tensor, "h d"],
    keys: Float[Tensor, "g t d"],
    *,
    block: int,
    unit: int,
    score: Literal["dot", "abs_dot", "unit_softmax"] = "dot",
    backend: str | None = None,
) -> Float[Tensor, " n"]:
    """Score each block of ``block`` keys by its best unit of ``unit`` keys.

        k_u = mean of the keys of unit u          r(j) = max_{u in block j}  1/h sum_i f(<q_i, k_{g(i), u}>)

    (Blocks scored by representative keys, as in InfLLM, arXiv 2402.04617; the representatives are means of units.)

    Args:
        query: one query of each head; head ``i`` reads KV head ``i // (h / g)``.
        keys: keys of one sequence, rotated as the query is; may be a view into a larger buffer.
        block: tokens in a block, at least 1.
        unit: tokens in a unit, at least 1; divides ``block``.
        score: ``f``: identity, absolute value, or softmax over all units of ``<q, k> / sqrt(d)`` for each head.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device, see `Kernel.chosen_backend`.

    Returns:
        ``n = ceil(t / block)`` scores in fp32, without gradient.

    Raises:
        ValueError: shapes, sizes or names do not fit, or there is no such backend, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    _validate(query, keys, block, unit, score)
    function = KERNEL.function(backend or KERNEL.chosen_backend(keys.device))
    return function(query.detach(), keys.detach(), block=block, unit=unit, score=score)


def _validate(query: Tensor, keys: Tensor, block: int, unit: int, score: str) -> None:
    if query.ndim != 2 or keys.ndim != 3 or query.shape[1] != keys.shape[2] or query.shape[0] % keys.shape[0]:
        shapes = f"{tuple(query.shape)} and {tuple(keys.shape)}"
        raise ValueError(f"query must be [h, d] and keys [g, t, d] with h a multiple of g, found {shapes}")
    if keys.shape[1] == 0:
        raise ValueError("keys hold no tokens, so there is no block to score")
    if unit < 1 or block < 1 or block % unit:
        raise ValueError(f"block must be a multiple of unit, and both positive; found block={block}, unit={unit}")
    if score not in SCORES:
        raise ValueError(f"unknown score {score!r}; supported: {', '.join(SCORES)}")


def _cases() -> Iterator[Case]:
    """Odd lengths, GQA 1, 2 and 4, head dims 16 to 128, unit sizes 1 to 128; the last keys are a view of a buffer."""
    sizes = (
        # h, g, t, d, block, unit
        (4, 4, 37, 16, 16, 4),
        (4, 2, 1, 24, 16, 4),
        (4, 1, 99, 80, 48, 6),
        (9, 3, 73, 64, 64, 8),
        (2, 1, 9, 40, 1, 1),
        (2, 1, 77, 128, 64, 1),
        (2, 2, 131, 128, 128, 128),
    )
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    generator = torch.Generator().manual_seed(0)
    for row, (h, g, t, d, block, unit) in enumerate(sizes):
        for column, score in enumerate(SCORES):
            dtype = dtypes[(row + column) % 3]
            query = torch.randn(h, d, generator=generator).to(dtype)
            keys = torch.randn(g, t + 5, d, generator=generator).to(dtype)[:, :t]
            name = f"h{h} g{g} t{t} d{d} block{block} unit{unit} {str(dtype)[6:]} {score}"
            yield Case(name, (query, keys), {"block": block, "unit": unit, "score": score})


KERNEL = Kernel(
    name="unit-score",
    target=f"{__name__}:KERNEL",
    naive=naive.unit_score,
    fast={"cpu": f"{__name__}.cpu:unit_score", "triton": f"{__name__}.triton:unit_score"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
)
