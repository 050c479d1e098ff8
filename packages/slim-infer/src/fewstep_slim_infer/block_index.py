"""Which blocks a decode step would read, from the mean keys of their units."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .options import Score
from .select import block_scores, top_blocks


class BlockIndex:
    """Unit keys of a segment's candidate blocks, from which each decode step chooses what to read.

    Args:
        blocks: numbers of the candidate blocks, for each row, ascending.
        units: mean keys ``[kv heads, blocks * units in a block, dim]`` for each row.
        per_block: units in a block.
        score: how a block is scored.
        carry: units before a block that count for it, see `block_scores`.
        sinks: first blocks that are always chosen.
        tails: last blocks that are always chosen, for each row.
    """

    def __init__(
        self,
        blocks: list[list[int]],
        units: list[Float[Tensor, "g m d"]],
        *,
        per_block: int,
        score: Score,
        carry: int,
        sinks: int,
        tails: list[int],
    ) -> None:
        self._blocks, self._units = blocks, units
        self._per_block, self._score, self._carry = per_block, score, carry
        self._sinks, self._tails = sinks, tails

    def choose(self, row: int, query: Float[Tensor, "h d"], budget: int) -> list[int]:
        """The `budget` best blocks of `row` for this local query, ascending."""
        blocks = self._blocks[row]
        if len(blocks) <= budget:
            return blocks
        numbers = torch.tensor(blocks, device=query.device)
        scores = block_scores(
            query, self._units[row], numbers, block=self._per_block, unit=1, score=self._score, carry=self._carry
        )
        place = torch.arange(len(blocks), device=scores.device)
        forced = (place < self._sinks) | (place >= len(blocks) - self._tails[row])
        return [blocks[i] for i in top_blocks(scores, budget, forced).tolist()]

    def learn(self, row: int, block: int, units: Float[Tensor, "g m d"]) -> None:
        """Add a candidate that was computed after the prefill."""
        place = sum(own < block for own in self._blocks[row])
        self._blocks[row] = [*self._blocks[row][:place], block, *self._blocks[row][place:]]
        before, after = self._units[row].tensor_split([place * self._per_block], dim=1)
        self._units[row] = torch.cat([before, units, after], dim=1)

    def select_rows(self, order: list[int]) -> None:
        """Rows follow their beams."""
        self._blocks = [self._blocks[r] for r in order]
        self._units = [self._units[r] for r in order]
        self._tails = [self._tails[r] for r in order]
