"""What sparse layers read, side by side in memory: on a CPU copying keys costs more than attending to them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .attend import KeyValues


@dataclass
class Slots:
    """Keys and values of one layer of one sequence: ``[sinks | blocks | tail and response]``."""

    keys: Float[Tensor, "g s d"]
    values: Float[Tensor, "g s d"]
    held: list[int] = field(default_factory=list)
    """Number of the prompt block in each block slot; empty before anything was copied."""
    sinks: list[int] = field(default_factory=list)
    """Positions of the sinks that were copied last."""


class Arena:
    """Copies of the selected prompt blocks, the sinks and the rest; a step copies only what changed since the last.

    Attention does not ask in which order keys stand, so a block that is still selected stays where it is.
    """

    def __init__(self, cache: KeyValues, *, block: int, blocks: int, sinks: int, start: int, rest: int) -> None:
        """A place for one sequence.

        Args:
            cache: all keys and values.
            block: tokens of a block.
            blocks: blocks that are selected at each step.
            sinks: most sinks.
            start: position of the first prompt token.
            rest: position from which on everything is read: the ragged tail of the prompt, then the response.
        """
        self.cache, self.block, self.blocks, self.sinks = cache, block, blocks, sinks
        self.start, self.rest = start, rest
        self.slots: dict[int, Slots] = {}

    def forget(self) -> None:
        """Copy everything anew: the cache was rewritten."""
        for slots in self.slots.values():
            slots.held = []

    def read(
        self,
        layer: int,
        row: int,
        blocks: list[int],
        sinks: list[int],
        *,
        stale: set[int],
        renewed: Int[Tensor, " r"],
        new: tuple[Float[Tensor, "g r d"], Float[Tensor, "g r d"]],
        end: int,
    ) -> tuple[Float[Tensor, "1 g s d"], Float[Tensor, "1 g s d"]]:
        """Keys and values of `blocks`, of `sinks` outside them, and of everything from `rest` to `end`.

        Args:
            layer: index of the layer.
            row: index of the sequence in the cache.
            blocks: selected blocks, as many as at every step.
            sinks: positions, none in a selected block.
            stale: blocks that hold rewritten positions.
            renewed: rewritten positions from `rest` on.
            new: their keys and values.
            end: position behind the last one that is read.
        """
        keys, values = (store[layer][row] for store in (self.cache.keys, self.cache.values))
        slots = self.slots.get(layer) or self._new(layer, keys)
        first = self.sinks + self.blocks * self.block
        same = bool(slots.held) and not stale and slots.sinks == sinks
        where = torch.tensor([] if same else sinks, dtype=torch.long, device=keys.device)
        for held, source, rows in ((slots.keys, keys, new[0]), (slots.values, values, new[1])):
            self._place_blocks(held, source, slots.held, blocks, stale)
            if not slots.held:
                held[:, first:] = source[:, self.rest : self.cache.length]
            else:
                held.index_copy_(1, renewed - (self.rest - first), rows)
            if len(where):
                held[:, self.sinks - len(sinks) : self.sinks] = source.index_select(1, where)
        slots.sinks = sinks
        slots.held = self._arranged(slots.held, blocks)
        inside = slice(self.sinks - len(sinks), first + end - self.rest)
        return slots.keys[None, :, inside], slots.values[None, :, inside]

    def _place_blocks(
        self, held: Tensor, source: Tensor, before: list[int], blocks: list[int], stale: set[int]
    ) -> None:
        size = self.block
        for slot, number in enumerate(self._arranged(before, blocks)):
            if before and before[slot] == number and number not in stale:
                continue
            at, came = self.sinks + slot * size, self.start + number * size
            held[:, at : at + size] = source[:, came : came + size]

    def _arranged(self, before: list[int], blocks: list[int]) -> list[int]:
        """The selected blocks by slot: those that were there stay, the others fill what became free."""
        wanted = set(blocks)
        coming = iter([number for number in blocks if number not in set(before)])
        return [number if number in wanted else next(coming) for number in before] if before else blocks

    def _new(self, layer: int, keys: Float[Tensor, "g n d"]) -> Slots:
        size = self.sinks + self.blocks * self.block + self.cache.length - self.rest
        shape = (keys.shape[0], size, keys.shape[2])
        self.slots[layer] = Slots(keys.new_empty(shape), keys.new_empty(shape))
        return self.slots[layer]
