"""Which blocks survive (SlimInfer, arXiv:2508.06447, "selection"), and the rows of the sequence that they hold."""

from __future__ import annotations

import torch
from fewstep.kernels.unit_score import unit_score
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .options import Score


def block_scores(
    query: Float[Tensor, "h d"],
    keys: Float[Tensor, "g t d"],
    numbers: Int[Tensor, " n"],
    *,
    block: int,
    unit: int,
    score: Score,
    carry: int,
) -> Float[Tensor, " n"]:
    """Relevance of each block: its best unit's, or that of one of the `carry` units right before it.

    A hit announces what comes behind it, which may be in the next block. The paper has ``carry = 0``.

    Args:
        query: local query.
        keys: of the tokens that are left, block after block; only the last may be ragged.
        numbers: of these blocks in the prompt, ascending; a block carries on to its successor in the prompt alone.
        block: tokens in a block.
        unit: tokens in a unit.
        score: see `SlimInfer.score`.
        carry: units, at most those of a block.
    """
    if carry == 0:
        return unit_score(query, keys, block=block, unit=unit, score=score)
    each = unit_score(query, keys, block=unit, unit=unit, score=score)
    per_block = block // unit
    each = nn.functional.pad(each, (0, -each.numel() % per_block), value=-torch.inf).unflatten(0, (-1, per_block))
    last = each[:-1, -carry:].amax(1).masked_fill(numbers[1:] != numbers[:-1] + 1, -torch.inf)
    return torch.maximum(each.amax(1), nn.functional.pad(last, (1, 0), value=-torch.inf))


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
