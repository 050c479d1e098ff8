"""Which blocks survive (SlimInfer, arXiv:2508.06447, "selection"), and the rows of the sequence that they hold."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def top_blocks(scores: Float[Tensor, " n"], budget: int, forced: Bool[Tensor, " n"]) -> Int[Tensor, " k"]:
    """The `budget` best blocks in ascending order, the forced ones first of all; every block if there are no more.

    Ties go to the lower index, so that devices agree.
    """
    if scores.numel() <= budget:
        return torch.arange(scores.numel(), device=scores.device)
    ranked = torch.sort(scores.masked_fill(forced, torch.inf), descending=True, stable=True).indices
    return ranked[:budget].sort().values


def forced_blocks(tokens: int, block: int, *, sinks: int, tails: int, window: int) -> Bool[Tensor, " n"]:
    """The first `sinks` and last `tails` blocks of a sequence, and those that hold its last `window` tokens."""
    index = torch.arange(-(-tokens // block))
    return (index < sinks) | (index >= min(index.numel() - tails, (tokens - window) // block))


def rows_of(blocks: Int[Tensor, " k"], block: int, tokens: int) -> Int[Tensor, " t"]:
    """Token rows of `blocks` in a sequence of `tokens`, whose last block may be ragged."""
    rows = (blocks[:, None] * block + torch.arange(block, device=blocks.device)).flatten()
    return rows[rows < tokens]


def unit_means(keys: Float[Tensor, "g n d"], unit: int) -> Float[Tensor, "g m d"]:
    """Mean key of every unit, in float32; `n` is a multiple of `unit`."""
    return keys.float().unflatten(1, (-1, unit)).mean(2)
