"""Focus-dLLM's cached step: rows predicted by past confidence, against sinks and the prompt blocks they need."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import torch
from fewstep.kernels.gathered_attention import gathered_attention
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .arena import Arena
from .attend import Cached, Full, KeyValues, Plan, attend, attend_and_weigh, padded
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


class Renewed(NamedTuple):
    """The active rows of one sequence that lie behind the whole blocks of its prompt."""

    positions: Int[Tensor, " r"]
    index: Int[Tensor, " r"] | None
    """Which of the active rows they are; None for all."""

    @classmethod
    def of(cls, positions: Int[Tensor, " r"], rest: int, length: int) -> Renewed:
        """Those of `positions` from `rest` on; positions equal to `length` only pad."""
        inside = (positions >= rest) & (positions < length)
        return cls(positions, None) if inside.all() else cls(positions[inside], inside.nonzero()[:, 0])

    def rows(self, found: Float[Tensor, "g a d"]) -> Float[Tensor, "g r d"]:
        """Their rows among those of all active positions."""
        return found if self.index is None else found.index_select(1, self.index)


class Focused(Cached):
    """Active rows: dense up to the last dense layer, where sinks are found; sparse in all deeper ones."""

    def __init__(self, decoder: Focus, positions: Int[Tensor, "b r"], focus: Bool[Tensor, "b r"]) -> None:
        super().__init__(decoder.cache, decoder.allowed, positions)
        state, self.pruning, self.lookup = decoder.state, decoder.pruning, decoder.lookup
        self.prompt, self.end, self.pad = state.prompt, decoder.end(), decoder.pads
        real = positions < state.length
        self.weights = real / real.sum(1, keepdim=True).clamp(min=1)
        self.focus = [row.nonzero()[:, 0] for row in focus]
        # host copies, once a step instead of once a layer
        self.touched = {(r, int(positions[r, i])) for r, i in (positions < state.prompt).nonzero().tolist()}
        self.arenas = decoder.arenas
        self.renewed = [Renewed.of(p, a.rest, state.length) for p, a in zip(positions, self.arenas, strict=True)]
        self.sinks: list[Int[Tensor, " s"]] = []
        self.chosen: list[list[tuple[Int[Tensor, " k"], Int[Tensor, " s"]]]] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.cache.write(layer, self.positions, key, value)
        keys, values = self.cache.read(layer)
        if layer < self.pruning.last_dense:
            return attend(query, keys, values, self.allowed, scale)
        if layer == self.pruning.last_dense:
            output, mass = attend_and_weigh(query, keys, values, self.allowed, scale, self.weights.float())
            inside = zip(mass, self.pad, strict=True)
            self.sinks = [top_sinks(m[pad : self.prompt], self.pruning.sinks) for m, pad in inside]
            return output
        for row, position in self.touched:
            self.lookup.touch(layer, row, position)
        self.chosen.append([self._choose(layer, row, query[row]) for row in range(len(query))])
        if query.is_cuda:  # a kernel that reads in place needs no copies
            return gathered_attention(query, keys, values, self.tokens(self.chosen[-1]), scale=scale)
        found = [self._from_arena(layer, row, query, (key[row], value[row]), scale) for row in range(len(query))]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _choose(
        self, layer: int, row: int, query: Float[Tensor, "h r d"]
    ) -> tuple[Int[Tensor, " k"], Int[Tensor, " s"]]:
        """Prompt blocks that one sequence reads in this layer, and its sinks; both count from its first token."""
        pruning, count = self.pruning, self.arenas[row].blocks
        if not len(self.focus[row]):  # a sequence that is finished only waits for the others
            return torch.arange(count, device=query.device), self.sinks[row]
        units = -(-pruning.block // UNIT) if pruning.unit else 1
        relevance = block_relevance(
            query[:, self.focus[row]], self.lookup.means[layer, row], aggregate=pruning.aggregate, units=units
        )
        return top_blocks(relevance, count), self.sinks[row]

    def _from_arena(
        self, layer: int, row: int, query: Tensor, rows: tuple[Tensor, Tensor], scale: float
    ) -> Float[Tensor, "1 h r d"]:
        arena, pad, size = self.arenas[row], self.pad[row], self.pruning.block
        blocks, sinks = (found.tolist() for found in self.chosen[-1][row])
        inside = set(blocks)
        outside = [pad + s for s in sinks if s // size not in inside and pad + s < arena.rest]
        stale = {(position - pad) // size for r, position in self.touched if r == row}
        renewed = self.renewed[row]
        keys, values = arena.read(
            layer,
            row,
            blocks,
            outside,
            stale=stale,
            renewed=renewed.positions,
            new=(renewed.rows(rows[0]), renewed.rows(rows[1])),
            end=self.end,
        )
        return attend(query[row : row + 1], keys, values, None, scale)

    def tokens(self, chosen: list[tuple[Int[Tensor, " k"], Int[Tensor, " s"]]]) -> Int[Tensor, "b t"]:
        """Positions that a sparse layer reads, filled up with -1."""
        response = torch.arange(self.prompt, self.end, device=self.positions.device)
        found = []
        for (blocks, sinks), pad in zip(chosen, self.pad, strict=True):
            mine = prompt_tokens(blocks, sinks, prompt=self.prompt - pad, block=self.pruning.block) + pad
            found.append(torch.cat([mine, response]))
        return padded(found, fill=-1)

    def most_read(self, row: int, arena: Arena) -> Int[Tensor, " t"]:
        """Prompt positions of one sequence: sinks and the blocks that most layers chose, as many as a layer reads."""
        blocks, sinks = zip(*(chosen[row] for chosen in self.chosen), strict=True)
        prompt, size = self.prompt - self.pad[row], self.pruning.block
        votes = torch.cat(blocks).bincount(minlength=prompt // size)
        best = top_blocks(votes, arena.blocks)
        return prompt_tokens(best, sinks[0], prompt=prompt, block=size) + self.pad[row]

    def read(self) -> list[int]:
        """Keys that a row of the first sequence read in each sparse layer."""
        size, rest = self.pruning.block, self.arenas[0].rest - self.pad[0]
        return [
            len(blocks) * size
            + self.end
            - self.arenas[0].rest
            + int((~torch.isin(sinks // size, blocks) & (sinks < rest)).sum())
            for ((blocks, sinks), *_) in self.chosen
        ]


class Focus(Caching):
    """Focus-dLLM (arXiv 2602.02159): refresh at each block, then only active rows against a pruned prompt."""

    def __init__(self, model: Any, state: State, pruning: Pruning) -> None:
        super().__init__(model, state)
        self.pruning = pruning
        self.lookup = Lookup(self.cache, state, pruning)
        self.pads: list[int] = state.pad.tolist()
        self.arenas = [self._arena(pad) for pad in self.pads]
        self.last: dict[int, Focused] = {}
        self.boost = 1
        self.since = 0

    def _arena(self, pad: int) -> Arena:
        size, prompt = self.pruning.block, self.state.prompt - pad
        blocks = budget(prompt, size, self.pruning.keep, self.pruning.floor)
        rest = pad + prompt // size * size
        sinks = min(self.pruning.sinks, prompt)
        return Arena(self.cache, block=size, blocks=blocks, sinks=sinks, start=pad, rest=rest)

    def everything(self, plan: Plan | None) -> Answers:
        for arena in self.arenas:
            arena.forget()
        return super().everything(plan)

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
        read, dense = plan.read(), self.pruning.last_dense + 1
        self.count(positions, (dense * self.state.length + sum(read)) / (dense + len(read)))
        if read:
            self.state.stats.kept.append(sum(read) / len(read) - (plan.end - self.state.prompt))
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

    def end(self) -> int:
        """Position behind the last one that sparse layers read: of all, or with a suffix window of those near."""
        state, suffix = self.state, self.pruning.suffix
        return state.length if suffix is None else min(state.length, state.block.end + suffix)

    def _partial(self) -> Answers:
        """Ours: renew the response, the token before it, and the prompt that most sparse layers read last."""
        state = self.state
        chosen = torch.zeros(len(state.tokens), state.length, dtype=torch.bool, device=state.tokens.device)
        for row, arena in enumerate(self.arenas):
            if row in self.last:
                chosen[row, self.last[row].most_read(row, arena)] = True
            else:
                chosen[row, state.pad[row] :] = True  # that one has not asked for anything yet
        chosen[:, state.prompt - 1 : state.length] = True
        rows = padded([row.nonzero()[:, 0] for row in chosen], fill=state.length)
        state.stats.partial_rows.append(rows.shape[1])
        found = self.some(rows, Cached(self.cache, self.allowed, rows))
        for arena in self.arenas:
            arena.forget()
        for layer in range(self.pruning.last_dense + 1, self.model.config.num_hidden_layers):
            self.lookup.renew(layer)
        return found
