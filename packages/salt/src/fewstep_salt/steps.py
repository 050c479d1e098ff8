"""Step lists of Salt, the mixture that rollouts draw them from, and the triples of levels of the semigroup loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from fewstep.flow import StepGrid
from fewstep.train.parallel import broadcast

L8 = StepGrid((1000, 875, 750, 625, 500, 375, 250, 125))
"""The dense list; it contains the other two, so that training visits every level of inference."""
L4 = StepGrid((1000, 750, 500, 250))
L2 = StepGrid((1000, 500))


@dataclass(frozen=True)
class StepMix:
    """Step lists with probabilities: every rollout, of student and critic alike, draws its list from one mixture.

    Raises:
        ValueError: no list, another number of probabilities, or they do not sum to 1.
    """

    grids: tuple[StepGrid, ...] = (L8, L4, L2)
    """Step lists, the densest first."""
    probabilities: tuple[float, ...] = (0.4, 0.4, 0.2)
    """One for each list."""

    def __post_init__(self) -> None:
        proper = all(p >= 0 for p in self.probabilities) and abs(sum(self.probabilities) - 1) < 1e-6
        if not self.grids or len(self.grids) != len(self.probabilities) or not proper:
            raise ValueError(
                f"a mixture needs a probability for each of its step lists, and their sum must be 1; "
                f"found {len(self.grids)} lists and {self.probabilities}"
            )

    def draw(self, generator: torch.Generator, number: int = 0) -> StepGrid:
        """A step list, the same on all ranks: that of rank 0.

        Args:
            generator: new for each call, as `fewstep.train.rollout.draw_exit` takes it; draw the list before the exit.
            number: of the draw that is returned, from 0: those before it are for other micro-batches.
        """
        weights = torch.tensor(self.probabilities, dtype=torch.float64)
        drawn = torch.multinomial(weights, number + 1, replacement=True, generator=generator)
        return self.grids[broadcast(int(drawn[-1]))]

    def denser(self, grid: StepGrid) -> StepGrid | None:
        """The list with the fewest steps among those that contain `grid` and have more; None for the densest."""
        more = [one for one in self.grids if len(one) > len(grid) and set(one.raw) >= set(grid.raw)]
        return min(more, key=len, default=None)


class Triple(NamedTuple):
    """Three noise levels ``s > m > e`` that the student passes directly and in two steps; exact floats."""

    start: float
    """``s``, a level of the list."""
    middle: float
    """``m``, a level of the list between the other two."""
    end: float
    """``e``, a boundary of a segment."""


@dataclass(frozen=True)
class TripleSampler:
    """Triples of a step list for each exit step (Salt, arXiv 2604.03118).

        B = {L[0], L[K/n], L[2K/n], ..., 0}          the boundaries of n segments: the levels of inference, and 0
        s = L[i]     e ~ the two largest of B below L[i+1]     m ~ the levels of L strictly between e and s

    There is always a level between, since ``e < L[i+1] < s``. The last exit step has no triple.

    Raises:
        ValueError: the steps do not divide into the segments.
    """

    grid: StepGrid = L8
    """Step list ``L`` of K levels."""
    segments: int = 4
    """``n``."""
    nearest: int = 2
    """Boundaries that ``e`` is drawn from."""

    def __post_init__(self) -> None:
        if self.segments < 1 or self.nearest < 1 or len(self.grid) % self.segments:
            raise ValueError(
                f"{len(self.grid)} steps do not divide into {self.segments} segments, with {self.nearest} ends each"
            )

    @property
    def boundaries(self) -> tuple[float, ...]:
        """Falling levels of ``B``, the last of them 0."""
        levels: list[float] = self.grid.sigmas.tolist()
        return (*levels[:: len(levels) // self.segments], 0.0)

    def candidates(self, exit: int) -> dict[float, tuple[float, ...]]:
        """The middle levels ``m`` for each end ``e`` of one exit step, both falling; empty for the last step."""
        levels: list[float] = self.grid.sigmas.tolist()
        if exit == len(levels) - 1:
            return {}
        ends = [level for level in self.boundaries if level < levels[exit + 1]][: self.nearest]
        return {end: tuple(level for level in levels if end < level < levels[exit]) for end in ends}

    def triples(self) -> Iterator[Triple]:
        """Every triple, by exit step, then by falling end and middle level."""
        for exit, start in enumerate(self.grid.sigmas.tolist()):
            for end, middles in self.candidates(exit).items():
                yield from (Triple(start, middle, end) for middle in middles)

    def draw(self, exit: int, generator: torch.Generator) -> Triple | None:
        """A triple that starts at an exit step, the same on all ranks: that of rank 0. None for the last step.

        Args:
            exit: index of the step in the list.
            generator: the same on all ranks, after the exit was drawn from it.
        """
        candidates = self.candidates(exit)
        if not candidates:
            return None
        end = tuple(candidates)[_uniform(len(candidates), generator)]
        middle = candidates[end][_uniform(len(candidates[end]), generator)]
        return Triple(self.grid.sigmas[exit].item(), middle, end)


def _uniform(count: int, generator: torch.Generator) -> int:
    return broadcast(int(torch.randint(count, (), generator=generator)))
