"""The forward pass of a cached step of Focus-dLLM (arXiv 2602.02159): which layers read what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fewstep.kernels.gathered_attention import gathered_attention
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .arena import Arena
from .attend import Cached, Full, KeyValues, attend, attend_and_weigh, padded
from .select import (
    UNIT,
    Aggregate,
    block_relevance,
    prompt_tokens,
    representatives,
    top_blocks,
    top_sinks,
)
from .state import State


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

    def __init__(
        self,
        lookup: Lookup,
        arenas: list[Arena],
        allowed: Bool[Tensor, "b n"] | None,
        positions: Int[Tensor, "b r"],
        focus: Bool[Tensor, "b r"],
        state: State,
        end: int,
    ) -> None:
        """A step.

        Args:
            lookup: representatives of prompt blocks; its cache is written.
            arenas: copies of what is read, one for each sequence.
            allowed: False for positions that pad the prompt.
            positions: active positions, filled up with the length of the sequences.
            focus: which of them are in focus.
            state: the sequences.
            end: position behind the last one that sparse layers read.
        """
        super().__init__(lookup.cache, allowed, positions)
        self.lookup, self.pruning, self.arenas, self.end = lookup, lookup.pruning, arenas, end
        self.prompt, self.pad = state.prompt, lookup.pad
        real = positions < state.length
        self.weights = real / real.sum(1, keepdim=True).clamp(min=1)
        self.focus = [row.nonzero()[:, 0] for row in focus]
        # host copies, once a step instead of once a layer
        self.touched = {(r, int(positions[r, i])) for r, i in (positions < state.prompt).nonzero().tolist()}
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
            output = gathered_attention(query, keys, values, self.tokens(self.chosen[-1]), scale=scale)
            assert isinstance(output, Tensor)  # without its log-sum-exp
            return output
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
        if not self.chosen:  # every layer is dense
            return torch.arange(self.pad[row], self.prompt, device=self.positions.device)
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
