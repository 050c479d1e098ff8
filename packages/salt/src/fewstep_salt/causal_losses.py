"""Alignment of causal students: the reference is the same video in more steps, with a cache of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fewstep.flow import Latent, StepGrid
from fewstep.train.chunk_noise import FreshNoise, ReferenceNoise, reference_transition
from fewstep.train.chunk_reference import reference_roll
from fewstep.train.chunk_rollout import ChunkRollout
from fewstep.train.objective import Batch
from fewstep.train.roles import Roles
from torch import Tensor

from .losses import AlignmentLoss


@dataclass(frozen=True, kw_only=True)
class ChunkAlignmentLoss(AlignmentLoss):
    """`AlignmentLoss` of videos that were made chunk by chunk (Salt, arXiv 2604.03118).

    Raises:
        ValueError: a number is out of range, or the mixture lacks a list that a pair names.
    """

    pairs: tuple[tuple[int, int], ...] = ((2, 4),)
    """Numbers of steps of a sample and of its reference; the paper also aligns 4 with 8."""
    noise: ReferenceNoise = "independent"
    """Noise of the reference; see `fewstep.train.chunk_noise`."""
    share_exit_input: bool = False
    """Ask the reference at the sample's own noisy input, so that only the caches differ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lists = {len(grid): set(grid.raw) for grid in self.mix.grids}
        for few, more in self.pairs:
            if few in lists and (few >= more or not lists[few] <= lists.get(more, set())):
                raise ValueError(f"{few} steps cannot be aligned with {more}: there are lists of {[*lists]} steps")

    def reference_grid(self, grid: StepGrid, exit: int, step: int) -> StepGrid | None:
        more = dict(self.pairs).get(len(grid))
        if more is None or not exit or step < self.start:
            return None
        return next(one for one in self.mix.grids if len(one) == more)

    def __call__(self, roles: Roles, sample: ChunkRollout, batch: Batch, step: int) -> Tensor | None:  # type: ignore[override]
        """See `fewstep.train.extra.ExtraLoss`; `sample` remembers the noise that it was made with."""
        grid = self.reference_grid(sample.grid, sample.exit, step)
        if grid is None:
            return None
        reference = self._reference(sample, grid)
        return self.scale * self.alignment(roles.teacher, sample.x, reference, batch, given=sample.given)

    def _reference(self, sample: ChunkRollout, grid: StepGrid) -> Latent:
        """The same video in more steps; its caches are free before the teacher is asked.

        Where the sample's first frame was encoded again, as an image, the reference gets the same one: the round trip
        through the autoencoder is no fault of the student.
        """
        assert isinstance(sample.transition, FreshNoise)
        transition = reference_transition(self.noise, sample.transition)
        x = reference_roll(sample, grid, transition, share_exit_input=self.share_exit_input).x
        return torch.cat([sample.x[:, :, :1].detach(), x[:, :, 1:]], 2) if sample.given else x
