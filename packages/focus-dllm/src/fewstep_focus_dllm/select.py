"""Which positions are computed and which prompt tokens they read: the selections of Focus-dLLM (arXiv 2602.02159)."""

from __future__ import annotations

from math import ceil
from typing import Literal

import torch
from fewstep.kernels.block_means import block_means
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Aggregate = Literal["softmax", "mean", "max"]
UNIT = 8
"""Tokens of a unit, where a block is represented by its units instead of its mean."""


def widen(focus: Bool[Tensor, "b n"], window: int | None) -> Bool[Tensor, "b n"]:
    """Active positions: the focus positions and their neighbours, ``window`` (odd) positions around each.

    Purely positional, clipped at both ends; None activates everything, where anything is in focus.
    """
    if window is None:
        return focus.any(1, keepdim=True).expand_as(focus)
    if window == 1:
        return focus
    return F.max_pool1d(focus[:, None].float(), window, stride=1, padding=window // 2)[:, 0] > 0


def block_relevance(
    query: Float[Tensor, "h f d"],
    representatives: Float[Tensor, "g u d"],
    *,
    aggregate: Aggregate,
    units: int,
) -> Float[Tensor, " n"]:
    """Relevance of prompt blocks to the focus queries; ``units`` consecutive representatives make a block.

    ``softmax``: ``rel_j = mean_h mean_f softmax_j(<q_f^h, rep_j^h> / sqrt(d))``, so that no row drowns the others;
    ``mean``: the plain mean of the dot products; ``max``: the largest over the rows of their mean over heads.
    """
    groups, dim = representatives.shape[0], query.shape[-1]
    rows = query.reshape(groups, -1, dim).to(representatives.dtype) / dim**0.5
    dots = (rows @ representatives.mT).view(query.shape[0], query.shape[1], -1)
    if aggregate == "softmax":
        score = dots.softmax(-1).mean((0, 1))
    else:
        by_row = dots.mean(0)
        score = by_row.amax(0) if aggregate == "max" else by_row.mean(0)
    if units == 1:
        return score
    missing = -score.numel() % units
    return F.pad(score, (0, missing), value=-torch.inf).view(-1, units).amax(1)


def top_blocks(relevance: Float[Tensor, " n"] | Int[Tensor, " n"], count: int) -> Int[Tensor, " k"]:
    """The `count` most relevant blocks, the most relevant first."""
    return relevance.topk(count).indices


def budget(prompt: int, block: int, keep: float, floor: int) -> int:
    """Whole blocks that are kept of a prompt: ``ceil(keep * blocks)``, and as many as `floor` tokens need."""
    blocks = prompt // block
    return min(blocks, max(ceil(keep * blocks), ceil(floor / block)))


def prompt_tokens(
    selected: Int[Tensor, " k"], sinks: Int[Tensor, " s"], *, prompt: int, block: int
) -> Int[Tensor, " t"]:
    """Prompt positions that sparse layers read, ascending: selected blocks, sinks, and the ragged tail (``I_P``)."""
    blocks = prompt // block
    kept = torch.zeros(prompt, dtype=torch.bool, device=selected.device)
    kept[: blocks * block].view(blocks, block)[selected] = True
    kept[blocks * block :] = True
    kept[sinks] = True
    return kept.nonzero()[:, 0]


def top_sinks(mass: Float[Tensor, " n"], count: int) -> Int[Tensor, " s"]:
    """The `count` positions with the largest attention mass (all, where there are fewer)."""
    return mass.topk(min(count, len(mass))).indices


def representatives(keys: Float[Tensor, "g t d"], *, block: int, unit: bool) -> Float[Tensor, "g u d"]:
    """What stands for the whole blocks of `keys` when they are looked up: their mean keys, or those of their units."""
    whole = keys[:, : keys.shape[1] // block * block]
    if not whole.numel():  # a prompt shorter than a block is all ragged tail
        return whole.float()
    return block_means(whole[None], block=min(UNIT, block) if unit else block)[0]
