"""Decoders: forward passes over some positions, with or without a cache, that give logits about the current block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from fewstep.families import masked_lm
from fewstep.families.attention import AttentionFunction
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from .decoding import BlockLogits, State

Queries = Float[Tensor, "b h r d"]
Keys = Float[Tensor, "b g n d"]
"""Keys or values, of fewer heads than queries where these are grouped."""
Rows = Int[Tensor, "b r"]
"""Positions of the computed rows of each sequence; those equal to its length only pad."""
Allowed = Bool[Tensor, "b n"] | None
"""False for positions that pad the prompt; None where none does."""
AttentionPlan = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""Attention of the layers of one forward pass: ``(layer, query [B,H,R,D], key [B,G,R,D], value, scale) -> [B,H,R,D]``.
Queries and keys are rotated, and those of the computed rows; it travels to the layers as the argument ``plan``."""


def planned(current: AttentionFunction) -> AttentionFunction:
    """An attention function of transformers that follows the plan of the call, or else is `current`."""

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, plan=None, **kwargs: Any):
        if plan is None:
            return current(module, query, key, value, mask, **kwargs)
        output = plan(module.layer_idx, query, key, value, kwargs.get("scaling") or query.shape[-1] ** -0.5)
        return output.transpose(1, 2).contiguous(), None

    return attention


def attend(query: Queries, key: Keys, value: Keys, allowed: Allowed, scale: float) -> Queries:
    """Bidirectional attention; keys are never expanded: the query heads of a KV head become rows of it."""
    packed = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
    mask = None if allowed is None else allowed[:, None, None]
    return F.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale).view(query.shape)


class KeyValues:
    """Rotated keys and values ``[B, G, N + 1, D]`` of all positions by layer, written in place; none is ever evicted.

    The position behind the sequences takes the rows that only pad.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.keys: dict[int, Keys] = {}
        self.values: dict[int, Keys] = {}

    def write(self, layer: int, positions: Rows | None, key: Keys, value: Keys) -> None:
        """Replace the entries at `positions`; None writes all of them."""
        for store, new in ((self.keys, key), (self.values, value)):
            if layer not in store:
                store[layer] = new.new_empty(*new.shape[:2], self.length + 1, new.shape[3])
            if positions is None:
                store[layer][:, :, : self.length] = new
                continue
            for row, where in enumerate(positions):
                store[layer][row].index_copy_(1, where, new[row])

    def read(self, layer: int) -> tuple[Keys, Keys]:
        """Keys and values of all positions."""
        return self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]


class CachedAttention:
    """Writes the rows at `positions` (None: of all) to the cache, then attends from them to the whole cache."""

    def __init__(self, cache: KeyValues, allowed: Allowed, positions: Rows | None = None) -> None:
        self.cache, self.allowed, self.positions = cache, allowed, positions

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.cache.write(layer, self.positions, key, value)
        keys, values = (key, value) if self.positions is None else self.cache.read(layer)
        return attend(query, keys, values, self.allowed, scale)


class TokenDecoder:
    """Vanilla decoding: a forward pass over all positions at each step. Subclasses keep a cache between the steps.

    Logits are computed for the rows of the block only; the published code takes them for all rows.
    """

    def __init__(self, model: Any, state: State) -> None:
        self.model, self.state = model, state
        self.shift = masked_lm.logit_shift(model.config)
        padding = torch.arange(state.length, device=state.tokens.device) < state.pad[:, None]
        self.allowed: Allowed = ~padding if padding.any() else None

    def first_step(self) -> BlockLogits:
        """Logits about the masked positions of a block that has just been opened."""
        return self.full_pass(None)

    def later_step(self) -> BlockLogits:
        """Logits for a later step of the block."""
        return self.first_step()

    def after_step(self, unmasked: Bool[Tensor, "b l"]) -> None:
        """Take note of the positions of the block that a step unmasked."""

    def full_pass(self, plan: AttentionPlan | None) -> BlockLogits:
        """A forward pass over all positions; without a plan through the model's own attention."""
        every = self.positions(0, self.state.length)
        hidden = self.hidden(self.state.inputs(), every, plan)
        self.state.stats.refreshes += 1
        rows = slice(self.state.block.start - self.shift, self.state.block.end - self.shift)
        return self.logits(every[:, rows], hidden[:, rows])

    def partial_pass(self, rows: Rows, plan: AttentionPlan, wanted: Bool[Tensor, "b n"] | None = None) -> BlockLogits:
        """A forward pass over some positions."""
        tokens = self.state.inputs().gather(1, rows.clamp(max=self.state.length - 1))
        return self.logits(rows, self.hidden(tokens, rows, plan), wanted)

    def hidden(self, tokens: Rows, positions: Rows, plan: AttentionPlan | None) -> Float[Tensor, "b r d"]:
        """Final hidden states of rows at absolute positions, counted from each sequence's first real token."""
        mask = None if self.allowed is None else self.allowed.long()
        own = {"attention_mask": mask} if plan is None else {"plan": plan}
        places = (positions - self.state.pad[:, None]).clamp(min=0)
        return self.model.model(input_ids=tokens, position_ids=places, use_cache=False, **own).last_hidden_state

    def logits(
        self, rows: Rows, hidden: Float[Tensor, "b r d"], wanted: Bool[Tensor, "b n"] | None = None
    ) -> BlockLogits:
        """Logits of those rows that are about a masked position of the block (and one that is `wanted`)."""
        block, about = self.state.block, rows + self.shift
        inside = (about >= block.start) & (about < block.end)
        place = (about - block.start).clamp(0, block.end - block.start - 1)
        valid = inside & self.state.masked().gather(1, place)
        if wanted is not None:
            valid &= wanted.gather(1, about.clamp(max=self.state.length - 1))
        used = valid.any(0).nonzero()[:, 0]
        return BlockLogits(about[:, used], valid[:, used], self.model.lm_head(hidden[:, used]))

    def positions(self, start: int, end: int) -> Rows:
        """The same consecutive positions in each sequence."""
        return torch.arange(start, end, device=self.state.tokens.device).repeat(len(self.state.tokens), 1)


class CachedDecoder(TokenDecoder):
    """Fast-dLLM's block-wise cache (arXiv 2505.22618): a full pass at the first step of a block, then its rows only.

    With `suffix`, later steps compute all that is behind the block too: the prefix cache instead of the dual one.
    """

    def __init__(self, model: Any, state: State, *, suffix: bool = False) -> None:
        super().__init__(model, state)
        self.cache, self.suffix = KeyValues(state.length), suffix

    def plan(self, rows: Rows | None = None) -> AttentionPlan:
        """Attention of `rows` (None: of all positions) to everything."""
        return CachedAttention(self.cache, self.allowed, rows)

    def first_step(self) -> BlockLogits:
        return self.full_pass(self.plan())

    def later_step(self) -> BlockLogits:
        rows = self.rows()
        self.count(rows, self.state.length)
        return self.partial_pass(rows, self.plan(rows))

    def rows(self) -> Rows:
        """Positions that a cached step computes: the block, and where logits are shifted the one before it."""
        block = self.state.block
        return self.positions(block.start - self.shift, self.state.length if self.suffix else block.end)

    def count(self, rows: Rows, read: int | float) -> None:
        """Count the rows of a cached step, and the keys that each of them read, mean over layers."""
        self.state.stats.rows.append(rows.shape[1])
        self.state.stats.read.append(read)


def padded(positions: Sequence[Int[Tensor, " _"]], fill: int) -> Int[Tensor, "b n"]:
    """Lists of positions as one tensor, the shorter ones filled up with `fill`."""
    return torch.nn.utils.rnn.pad_sequence(list(positions), batch_first=True, padding_value=fill)
