"""Focus-dLLM's cached step: rows predicted by past confidence, against sinks and the prompt blocks they need."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from fewstep.kernels.column_mass import column_mass
from fewstep.kernels.gathered_attention import gathered_attention
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .attend import Cached, Full, KeyValues, attend, padded
from .decoder import Caching
from .select import (
    UNIT,
    Aggregate,
    block_relevance,
    budget,
    prompt_tokens,
    representatives,
    top_blocks,
    top_sinks,
    widen,
)
from .state import Answers, State
from .unmask import surest


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The hyper-parameters of `Focus` with every default filled in for one model and prompt."""

    window: int | None
    last_dense: int
    sinks: int
    block: int
    keep: float
    floor: int
    min_focus: int
    focus_ratio: float
    aggregate: Aggregate
    unit: bool
    guard: float
    delay_sparse: int
    refresh_every: int
    suffix: int | None
    full_every: int


class Lookup:
    """What stands for each block of the prompt in each sparse layer, per sequence; written at the refresh."""

    def __init__(self, cache: KeyValues, state: State, pruning: Pruning) -> None:
        self.cache, self.pad, self.prompt, self.pruning = cache, state.pad.tolist(), state.prompt, pruning
        self.means: dict[tuple[int, int], Float[Tensor, "g u d"]] = {}

    def renew(self, layer: int) -> None:
        """Compute all representatives of a layer from its cached keys."""
        for row in range(len(self.pad)):
            self.means[layer, row] = representatives(self._keys(layer, row), **self._how())

    def touch(self, layer: int, row: int, position: int) -> None:
        """Recompute the representatives of the block that holds a rewritten prompt position."""
        size = self.pruning.block
        index = (position - self.pad[row]) // size
        block = self._keys(layer, row)[:, index * size : (index + 1) * size]
        if block.shape[1] == size:  # the ragged tail of the prompt has none
            new = representatives(block, **self._how())
            units = new.shape[1]
            self.means[layer, row][:, index * units : (index + 1) * units] = new

    def _keys(self, layer: int, row: int) -> Float[Tensor, "g t d"]:
        return self.cache.read(layer)[0][row, :, self.pad[row] : self.prompt]

    def _how(self) -> dict[str, Any]:
        return {"block": self.pruning.block, "unit": self.pruning.unit}


class Refresh(Full):
    """A full pass that also makes the representatives of the layers that will be sparse."""

    def __init__(self, cache: KeyValues, allowed: Bool[Tensor, "b n"] | None, lookup: Lookup) -> None:
        super().__init__(cache, allowed)
        self.lookup = lookup

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output = super().attend(layer, query, key, value, scale)
        if layer > self.lookup.pruning.last_dense:
            self.lookup.renew(layer)
        return output


class Focused(Cached):
    """Active rows: dense up to the last dense layer, where sinks are found; sparse in all deeper ones."""

    def __init__(self, decoder: Focus, positions: Int[Tensor, "b r"], focus: Bool[Tensor, "b r"]) -> None:
        super().__init__(decoder.cache, decoder.allowed, positions)
        state, self.pruning, self.lookup = decoder.state, decoder.pruning, decoder.lookup
        self.prompt, self.length, self.pad = state.prompt, state.length, state.pad.tolist()
        self.response = decoder.response()
        self.real = positions < state.length
        self.focus = [row.nonzero()[:, 0] for row in focus]
        # host copies, once a step instead of once a layer
        touched = positions < state.prompt
        self.touched = {(row, int(positions[row, i])) for row, i in touched.nonzero().tolist()}
        self.sinks: list[Int[Tensor, " s"]] = []
        self.kept: list[int] = []
        self.used: list[Int[Tensor, "b t"]] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.cache.write(layer, self.positions, key, value)
        keys, values = self.cache.read(layer)
        if layer <= self.pruning.last_dense:
            if layer == self.pruning.last_dense:
                self.sinks = self._find_sinks(query, keys, scale)
            return attend(query, keys, values, self.allowed, scale)
        for row, position in self.touched:
            self.lookup.touch(layer, row, position)
        chosen = [self._choose(layer, row, query[row]) for row in range(len(query))]
        self.kept += [len(tokens) for tokens in chosen]
        tokens = padded([torch.cat([mine, self.response]) for mine in chosen], fill=-1)
        self.used.append(tokens)
        return gathered_attention(query, keys, values, tokens, scale=scale)

    def _find_sinks(self, query: Tensor, keys: Tensor, scale: float) -> list[Int[Tensor, " s"]]:
        weights = self.real / self.real.sum(1, keepdim=True)
        mass = column_mass(query, keys, row_weights=weights.float(), key_mask=self.allowed, scale=scale)
        return [top_sinks(m[p : self.prompt], self.pruning.sinks) for m, p in zip(mass, self.pad, strict=True)]

    def _choose(self, layer: int, row: int, query: Float[Tensor, "h r d"]) -> Int[Tensor, " t"]:
        """Prompt positions that one sequence reads in this layer."""
        pruning, prompt = self.pruning, self.prompt - self.pad[row]
        if not len(self.focus[row]):  # a sequence that is finished only waits for the others
            return self.sinks[row] + self.pad[row]
        count = budget(prompt, pruning.block, pruning.keep, pruning.floor)
        units = -(-pruning.block // UNIT) if pruning.unit else 1
        relevance = block_relevance(
            query[:, self.focus[row]], self.lookup.means[layer, row], aggregate=pruning.aggregate, units=units
        )
        tokens = prompt_tokens(top_blocks(relevance, count), self.sinks[row], prompt=prompt, block=pruning.block)
        return tokens + self.pad[row]


class Focus(Caching):
    """Focus-dLLM (arXiv 2602.02159): refresh at each block, then only active rows against a pruned prompt."""

    def __init__(self, model: Any, state: State, pruning: Pruning) -> None:
        super().__init__(model, state)
        self.pruning = pruning
        self.lookup = Lookup(self.cache, state, pruning)
        self.last: dict[int, Focused] = {}
        self.boost = 1
        self.since = 0

    def first(self) -> Answers:
        self.boost, self.since = 1, 0
        number = (self.state.block.start - self.state.prompt) // self.state.decoding.block_length
        if number % self.pruning.full_every and self.last:
            return self._partial()
        return self.everything(Refresh(self.cache, self.allowed, self.lookup))

    def next(self) -> Answers:
        self.since += 1
        if self.pruning.refresh_every and self.since % self.pruning.refresh_every == 0:
            return self.everything(Refresh(self.cache, self.allowed, self.lookup))
        focus = self._focus()
        active = widen(focus, self.pruning.window)
        if self.allowed is not None:
            active = active & self.allowed
        positions = padded([row.nonzero()[:, 0] for row in active], fill=self.state.length)
        if self.since <= self.pruning.delay_sparse:
            self.count(positions, self.state.length)
            return self.some(positions, Cached(self.cache, self.allowed, positions), active)
        inside = positions.clamp(max=self.state.length - 1)
        plan = Focused(self, positions, focus.gather(1, inside) & (positions < self.state.length))
        found = self.some(positions, plan, active)
        # a sequence that waits for the others asks for nothing: what it read when it last did, counts
        self.last |= {row: plan for row, asking in enumerate(plan.focus) if len(asking)}
        dense, read = self.pruning.last_dense + 1, sum(used.shape[1] for used in plan.used)
        self.count(positions, (dense * self.state.length + read) / (dense + len(plan.used)))
        if plan.kept:
            self.state.stats.kept.append(sum(plan.kept) / len(plan.kept))
        return found

    def _focus(self) -> Bool[Tensor, "b n"]:
        """The ``kf`` masked positions with the highest confidence of the step before."""
        state = self.state
        masked = state.masked()
        least, ratio = self.pruning.min_focus, self.pruning.focus_ratio
        wanted = [self.boost * max(least, ceil(ratio * int(n))) for n in state.counts()]
        inside = surest(state.confidence, masked, torch.tensor(wanted, device=masked.device))
        self.predicted = inside
        focus = torch.zeros_like(state.tokens, dtype=torch.bool)
        focus[:, state.block.start : state.block.end] = inside
        self.past = state.confidence
        return focus

    def settled(self, unmasked: Bool[Tensor, "b l"]) -> None:
        if self.since == 0:
            return
        state = self.state
        state.stats.unmasked += int(unmasked.sum())
        state.stats.predicted += int((unmasked & self.predicted).sum())
        if self.pruning.guard and unmasked.any():
            fell = state.confidence[unmasked] < self.pruning.guard * self.past[unmasked]
            self.boost = 2 * self.boost if fell.any() else 1

    def response(self) -> Int[Tensor, " g"]:
        """Response positions that sparse layers read: all, or with a suffix window none far behind the block."""
        state, suffix = self.state, self.pruning.suffix
        end = state.length if suffix is None else min(state.length, state.block.end + suffix)
        return torch.arange(state.prompt, end, device=state.tokens.device)

    def _partial(self) -> Answers:
        """Ours: renew the response, the prompt tokens that sparse layers read last, and the token before the block."""
        state = self.state
        chosen = torch.zeros(len(state.tokens), state.length + 1, dtype=torch.bool, device=state.tokens.device)
        for row in range(len(chosen)):
            chosen[row, state.pad[row] :] = row not in self.last  # that one has not asked for anything yet
            for tokens in self.last[row].used if row in self.last else ():
                chosen[row, tokens[row]] = True  # -1, which pads, is the one column too many
        chosen[:, state.prompt - 1 : state.length] = True
        rows = padded([row.nonzero()[:, 0] for row in chosen[:, : state.length]], fill=state.length)
        state.stats.partial_rows.append(rows.shape[1])
        found = self.some(rows, Cached(self.cache, self.allowed, rows))
        for layer in range(self.pruning.last_dense + 1, self.model.config.num_hidden_layers):
            self.lookup.renew(layer)
        return found
