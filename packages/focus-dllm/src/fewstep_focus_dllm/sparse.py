"""The pruned prompt that deep layers read at a cached step of Focus-dLLM (arXiv 2602.02159), and their attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from fewstep.kernels.gathered_attention import gathered_attention
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .decoders import Allowed, CachedAttention, Keys, KeyValues, Queries, Rows, attend, padded
from .selection import UNIT, Aggregate, block_relevance, block_summaries, prompt_tokens, top


def attend_and_weigh(
    query: Queries, key: Keys, value: Keys, allowed: Allowed, scale: float, weights: Float[Tensor, "b r"]
) -> tuple[Queries, Float[Tensor, "b n"]]:
    """`attend` for few rows, and the attention mass ``S`` of each key, by which sinks are found.

    The overview figure of the paper has one active row; the sum over rows with weights ``w`` is ours:

        S_j = sum_r w_r  1/H sum_h softmax_j(<q_r^h, k_j^h> scale)
    """
    groups = key.shape[1]
    packed = query.reshape(len(query), groups, -1, query.shape[-1]) * scale
    scores = (packed @ key.mT).float()
    if allowed is not None:
        scores.masked_fill_(~allowed[:, None, None], -torch.inf)
    shares = scores.softmax(-1)
    output = (shares.to(value.dtype) @ value).view(query.shape)
    by_row = weights.repeat(1, query.shape[1] // groups)[:, None, None] / query.shape[1]  # rows of a packed KV head
    return output, (by_row.expand(-1, groups, -1, -1) @ shares).sum((1, 2))


class Selection(NamedTuple):
    """Part of the prompt that one sequence reads in one sparse layer."""

    blocks: Int[Tensor, " k"]
    """Numbers of its blocks."""
    sinks: Int[Tensor, " s"]
    """Sinks, counted from its first token."""


@dataclass
class LayerCopy:
    """Keys and values that one sequence reads in one layer, side by side: ``[sinks | blocks | tail and response]``."""

    keys: Float[Tensor, "g s d"]
    values: Float[Tensor, "g s d"]
    blocks: list[int]
    """Number of the prompt block in each slot."""
    sinks: list[int]
    """Positions of the sinks that were copied last."""


@dataclass(kw_only=True)
class PrunedPrompt:
    """Block summaries of the prompt of one sequence by sparse layer, and copies of the keys and values it reads there.

    On a CPU copying keys costs more than attending to them, so a step copies only what changed since the one before it.
    Attention does not ask in which order keys stand: a block that is still selected stays where it is.
    """

    cache: KeyValues
    """Keys and values of all sequences."""
    row: int
    """Index of the sequence."""
    start: int
    """Position of its first prompt token."""
    end: int
    """Position of its first response token."""
    block: int
    """Tokens of a prompt block."""
    blocks: int
    """Blocks that are read in each layer."""
    sinks: int
    """Most sinks; not more than prompt tokens."""
    aggregate: Aggregate
    """See `block_relevance`."""
    units: bool
    """See `block_summaries`."""

    def __post_init__(self) -> None:
        self.tail = self.start + (self.end - self.start) // self.block * self.block  # from there everything is read
        self.summaries: dict[int, Float[Tensor, "g u d"]] = {}
        self.copies: dict[int, LayerCopy] = {}

    def renew(self, layers: range) -> None:
        """Summarize all blocks anew from the cached keys, and forget the copies."""
        for layer in layers:
            keys = self.cache.keys[layer][self.row, :, self.start : self.end]
            self.summaries[layer] = block_summaries(keys, block=self.block, units=self.units)
        self.copies.clear()

    def summarize(self, layer: int, blocks: set[int]) -> None:
        """Summarize blocks anew that hold rewritten positions; the ragged tail of the prompt has no summary."""
        for number in blocks:
            at = self.start + number * self.block
            if at < self.tail:
                keys = self.cache.keys[layer][self.row, :, at : at + self.block]
                new = block_summaries(keys, block=self.block, units=self.units)
                self.summaries[layer][:, number * new.shape[1] : (number + 1) * new.shape[1]] = new

    def select(self, layer: int, query: Float[Tensor, "h f d"]) -> Int[Tensor, " k"]:
        """Numbers of the blocks most relevant to the focus queries; any, where a sequence only waits for the others."""
        if not query.shape[1]:
            return torch.arange(self.blocks, device=query.device)
        per_block = -(-self.block // UNIT) if self.units else 1
        relevance = block_relevance(query, self.summaries[layer], aggregate=self.aggregate, per_block=per_block)
        return top(relevance, self.blocks)

    def positions(self, selection: Selection) -> Int[Tensor, " t"]:
        """Prompt positions of a selection, with the ragged tail."""
        return prompt_tokens(*selection, prompt=self.end - self.start, block=self.block) + self.start

    def read(
        self, layer: int, selection: Selection, rewritten: Int[Tensor, " r"], stale: set[int], end: int
    ) -> tuple[Float[Tensor, "1 g s d"], Float[Tensor, "1 g s d"]]:
        """Keys and values of a selection, of the ragged tail, and of the response up to `end`.

        Args:
            layer: index of the layer.
            selection: blocks, as many as at every step, and sinks.
            rewritten: positions from the tail on that were written since the last call.
            stale: numbers of the blocks that hold rewritten positions.
            end: position behind the last one that is read.
        """
        blocks, inside = selection.blocks.tolist(), set(selection.blocks.tolist())
        sinks = [self.start + s for s in selection.sinks.tolist() if s // self.block not in inside]
        sinks = [s for s in sinks if s < self.tail]
        first = self.sinks + self.blocks * self.block
        if fresh := layer not in self.copies:
            like = self.cache.keys[layer][self.row]
            empty = like.new_empty(len(like), first + self.cache.length - self.tail, like.shape[2])
            self.copies[layer] = LayerCopy(empty, torch.empty_like(empty), blocks, sinks)
        copy = self.copies[layer]
        arranged = _arranged(copy.blocks, blocks)
        moved = [n for n, number in enumerate(arranged) if fresh or copy.blocks[n] != number or number in stale]
        moved_sinks = sinks if fresh or stale or copy.sinks != sinks else []
        places = torch.tensor(moved_sinks, dtype=torch.long, device=rewritten.device)
        for held, store in ((copy.keys, self.cache.keys), (copy.values, self.cache.values)):
            source = store[layer][self.row]
            for slot in moved:
                to, at = self.sinks + slot * self.block, self.start + arranged[slot] * self.block
                held[:, to : to + self.block] = source[:, at : at + self.block]
            if fresh:
                held[:, first:] = source[:, self.tail : self.cache.length]
            else:
                held.index_copy_(1, rewritten - (self.tail - first), source.index_select(1, rewritten))
            if moved_sinks:
                held[:, self.sinks - len(sinks) : self.sinks] = source.index_select(1, places)
        copy.blocks, copy.sinks = arranged, sinks
        filled = slice(self.sinks - len(sinks), first + end - self.tail)
        return copy.keys[None, :, filled], copy.values[None, :, filled]


def _arranged(before: list[int], blocks: list[int]) -> list[int]:
    """The selected blocks by slot: those that were there stay, the others fill the slots that became free."""
    were, wanted = set(before), set(blocks)
    coming = iter([number for number in blocks if number not in were])
    return [number if number in wanted else next(coming) for number in before]


class SparseAttention(CachedAttention):
    """Attention of a cached step: dense up to layer `last_dense`, where sinks are found; sparse in all deeper ones.

    Sparse layers read positions below `end` only. `focus` says which of the active rows are in focus.
    """

    def __init__(
        self,
        cache: KeyValues,
        allowed: Allowed,
        active: Rows,
        focus: Bool[Tensor, "b r"],
        prompts: Sequence[PrunedPrompt],
        last_dense: int,
        end: int,
    ) -> None:
        super().__init__(cache, allowed, active)
        self.active, self.prompts, self.last_dense, self.end = active, prompts, last_dense, end
        real = active < cache.length
        self.weights = real / real.sum(1, keepdim=True).clamp(min=1)
        self.focus = [row.nonzero()[:, 0] for row in focus]
        self.stale: list[set[int]] = []  # host copies, once a step instead of once a layer
        for prompt, row in zip(prompts, active.tolist(), strict=True):
            self.stale.append({(p - prompt.start) // prompt.block for p in row if p < prompt.end})
        self.rewritten = [p[(p >= s.tail) & (p < cache.length)] for p, s in zip(active, prompts, strict=True)]
        self.sinks: list[Int[Tensor, " s"]] = []
        self.selected: list[list[Selection]] = []
        self.keys_read: list[Tensor | int] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if layer < self.last_dense:
            return super().__call__(layer, query, key, value, scale)
        self.cache.write(layer, self.active, key, value)
        keys, values = self.cache.read(layer)
        if layer == self.last_dense:
            output, mass = attend_and_weigh(query, keys, values, self.allowed, scale, self.weights.float())
            self.sinks = [top(m[p.start : p.end], p.sinks) for m, p in zip(mass, self.prompts, strict=True)]
            return output
        selected = [self._select(layer, row, query[row]) for row in range(len(query))]
        self.selected.append(selected)
        if query.is_cuda:  # a kernel that reads in place needs no copies
            tokens = self.tokens(selected)
            self.keys_read.append((tokens[0] >= 0).sum())
            output = gathered_attention(query, keys, values, tokens, scale=scale)
            assert isinstance(output, Tensor)  # without its log-sum-exp
            return output
        copies = [
            prompt.read(layer, selection, self.rewritten[row], self.stale[row], self.end)
            for row, (prompt, selection) in enumerate(zip(self.prompts, selected, strict=True))
        ]
        self.keys_read.append(copies[0][0].shape[2])
        outputs = [attend(query[row : row + 1], *copy, None, scale) for row, copy in enumerate(copies)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _select(self, layer: int, row: int, query: Float[Tensor, "h r d"]) -> Selection:
        self.prompts[row].summarize(layer, self.stale[row])
        return Selection(self.prompts[row].select(layer, query[:, self.focus[row]]), self.sinks[row])

    def tokens(self, selected: Sequence[Selection]) -> Int[Tensor, "b t"]:
        """Positions that a sparse layer reads, filled up with -1."""
        response = torch.arange(self.prompts[0].end, self.end, device=self.active.device)
        pairs = zip(self.prompts, selected, strict=True)
        return padded([torch.cat([prompt.positions(selection), response]) for prompt, selection in pairs], fill=-1)

    def most_read(self, row: int) -> Int[Tensor, " t"]:
        """Prompt positions of one sequence: sinks, and the blocks that most layers selected, as many as each reads."""
        prompt = self.prompts[row]
        if not self.selected:  # every layer is dense
            return torch.arange(prompt.start, prompt.end, device=self.active.device)
        votes = torch.cat([of_layer[row].blocks for of_layer in self.selected])
        best = top(votes.bincount(minlength=(prompt.end - prompt.start) // prompt.block), prompt.blocks)
        return prompt.positions(Selection(best, self.sinks[row]))
