"""Sparse-dLLM's cache (arXiv 2508.02558): at the second step of a block, cached tokens that it does not need go."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .attend import Full, KeyValues, attend
from .decoder import Caching
from .state import Answers, State

POOL = 3
"""Neighbours whose largest score a token takes (max pooling of the published code)."""


class Evicting(Caching):
    """Steps 0 and 1 of a block compute everything; from then on the block reads itself and a share of the rest."""

    def __init__(self, model: Any, state: State, keep: float) -> None:
        super().__init__(model, state)
        self.keep = keep

    def first(self) -> Answers:
        self.plan: Evicted | None = None
        return super().first()

    def next(self) -> Answers:
        if self.plan is None:
            scoring = Scoring(self.cache, self)
            answers = self.everything(scoring)
            self.plan = scoring.evicted
            return answers
        rows = self.rows()
        self.count(rows, self.plan.kept[0][0].shape[2])
        return self.some(rows, self.plan)


class Evicted:
    """The rows of the block against themselves and what was kept, which is copied together once a block."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.kept: dict[int, tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s d"], Any]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        keys, values, allowed = self.kept[layer]
        keys[:, :, -self.rows :], values[:, :, -self.rows :] = key, value
        return attend(query, keys, values, allowed, scale)


class Scoring(Full):
    """A full pass that scores the tokens outside the block and keeps the best of them, layer by layer.

    score_j = mean_h <mean over the block's queries, k_j>,  then the maximum over 3 neighbours
    """

    def __init__(self, cache: KeyValues, decoder: Evicting) -> None:
        super().__init__(cache, decoder.allowed)
        self.decoder, self.rows = decoder, decoder.rows()
        self.evicted = Evicted(self.rows.shape[1])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output = super().attend(layer, query, key, value, scale)
        keys, values = self.cache.read(layer)
        kept = self._best(query, keys)
        where = torch.cat([kept, self.rows], 1)
        index = where[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[-1])
        allowed = None if self.allowed is None else self.allowed.gather(1, where)
        self.evicted.kept[layer] = keys.gather(2, index), values.gather(2, index), allowed
        return output

    def _best(self, query: Float[Tensor, "b h n d"], keys: Float[Tensor, "b g n d"]) -> Int[Tensor, "b k"]:
        block, shift = self.decoder.state.block, self.decoder.shift
        start = block.start - shift
        mean = query[:, :, start : block.end].mean(2)
        groups = mean.view(len(mean), keys.shape[1], -1, mean.shape[-1]).sum(2)  # the mean over heads, times heads
        score = torch.einsum("bgd,bgnd->bn", groups, keys).float()
        if self.allowed is not None:
            score = score.masked_fill(~self.allowed, -torch.inf)
        score = F.max_pool1d(score[:, None], POOL, stride=1, padding=POOL // 2)[:, 0]
        outside = keys.shape[2] - (block.end - start)
        score[:, start : block.end] = -torch.inf
        count = max(1, int(self.decoder.keep * outside))
        self.decoder.state.stats.kept.append(float(count))
        return score.topk(count, 1).indices.sort(1).values
