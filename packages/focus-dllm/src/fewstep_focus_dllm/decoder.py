"""What computes logits while decoding: vanilla (everything at each step) and the caches of Fast-dLLM."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .attend import Cached, Full, KeyValues, Plan
from .state import Answers, State


class Decoder:
    """Vanilla decoding: a forward pass over all positions at each step. Subclasses keep a cache between the steps.

    Logits are computed for the rows of the block only; the published code takes them for all rows.
    """

    def __init__(self, model: Any, state: State) -> None:
        self.model, self.state = model, state
        self.shift = int(model.config.diffusion == "dream")  # logits of row p - 1 are about position p
        padding = torch.arange(state.length, device=state.tokens.device) < state.pad[:, None]
        self.allowed: Bool[Tensor, "b n"] | None = ~padding if padding.any() else None

    def first(self) -> Answers:
        """Logits of the masked positions of a block that has just been opened."""
        return self.everything(None)

    def next(self) -> Answers:
        """Logits for a later step of the block."""
        return self.everything(None)

    def settled(self, unmasked: Bool[Tensor, "b l"]) -> None:
        """Told after each step which positions of the block it unmasked."""

    def everything(self, plan: Plan | None) -> Answers:
        """A forward pass over all positions; without a plan through the model's own attention."""
        block = self.state.block
        every = torch.arange(self.state.length, device=self.state.tokens.device).expand_as(self.state.tokens)
        hidden = self.hidden(self.state.tokens, every, plan)
        self.state.stats.refreshes += 1
        rows = slice(block.start - self.shift, block.end - self.shift)
        return self.answers(every[:, rows], hidden[:, rows])

    def some(self, positions: Int[Tensor, "b r"], plan: Plan, wanted: Bool[Tensor, "b n"] | None = None) -> Answers:
        """A forward pass over `positions` (those equal to the length only pad)."""
        tokens = self.state.tokens.gather(1, positions.clamp(max=self.state.length - 1))
        return self.answers(positions, self.hidden(tokens, positions, plan), wanted)

    def hidden(
        self, tokens: Int[Tensor, "b r"], positions: Int[Tensor, "b r"], plan: Plan | None
    ) -> Float[Tensor, "b r d"]:
        """Final hidden states of rows at absolute positions, counted from each sequence's first real token."""
        extra = {"plan": plan} if plan is not None else {"attention_mask": self._stock_mask()}
        where = (positions - self.state.pad[:, None]).clamp(min=0)
        return self.model.model(input_ids=tokens, position_ids=where, use_cache=False, **extra).last_hidden_state

    def _stock_mask(self) -> Int[Tensor, "b n"] | None:
        return None if self.allowed is None else self.allowed.long()

    def answers(
        self, rows: Int[Tensor, "b r"], hidden: Float[Tensor, "b r d"], wanted: Bool[Tensor, "b n"] | None = None
    ) -> Answers:
        """Logits of those rows that are about a masked position of the block (and one that is `wanted`)."""
        block, about = self.state.block, rows + self.shift
        inside = (about >= block.start) & (about < block.end)
        place = (about - block.start).clamp(0, block.end - block.start - 1)
        valid = inside & self.state.masked().gather(1, place)
        if wanted is not None:
            valid &= wanted.gather(1, about.clamp(max=self.state.length - 1))
        some = valid.any(0).nonzero()[:, 0]
        return Answers(about[:, some], valid[:, some], self.model.lm_head(hidden[:, some]))


class Caching(Decoder):
    """A refresh at the first step of each block; later steps compute some rows against the cache."""

    def __init__(self, model: Any, state: State) -> None:
        super().__init__(model, state)
        self.cache = KeyValues(state.length)

    def first(self) -> Answers:
        return self.everything(Full(self.cache, self.allowed))

    def next(self) -> Answers:
        rows = self.rows()
        self.count(rows, self.state.length)
        return self.some(rows, Cached(self.cache, self.allowed, rows))

    def count(self, rows: Int[Tensor, "b r"], read: float) -> None:
        """Note what a cached step computed, and how many keys each row read, mean over layers."""
        self.state.stats.rows.append(rows.shape[1])
        self.state.stats.read.append(read)

    def rows(self) -> Int[Tensor, "b r"]:
        """Positions that a cached step computes: the whole block, and where logits are shifted the one before it."""
        return self.range(self.state.block.start - self.shift, self.state.block.end)

    def range(self, start: int, end: int) -> Int[Tensor, "b r"]:
        """The same consecutive positions in each sequence."""
        return torch.arange(start, end, device=self.state.tokens.device).repeat(len(self.state.tokens), 1)


class Prefix(Caching):
    """Fast-dLLM's prefix cache (arXiv 2505.22618): later steps compute the block and everything behind it."""

    def rows(self) -> Int[Tensor, "b r"]:
        return self.range(self.state.block.start - self.shift, self.state.length)
