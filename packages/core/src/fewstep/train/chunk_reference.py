"""Reference rollouts of a causal student (Salt, 2604.03118): the same video in more steps, with a cache of its own."""

from __future__ import annotations

from dataclasses import replace

import torch

from .. import flow
from ..flow import StepGrid
from .chunk_noise import Transition
from .chunk_rollout import ChunkRollout, roll


@torch.no_grad()
def reference_roll(
    sample: ChunkRollout,
    grid: StepGrid,
    transition: Transition,
    *,
    share_exit_input: bool = False,
) -> ChunkRollout:
    """Make the video of `sample` again from its noise and condition, over more steps, down to its exit level.

    Nothing of `sample` changes. Each chunk, left at the exit level of `sample`, fills the cache of the reference.

    Args:
        sample: rollout of the student.
        grid: steps; they contain the exit level of `sample`.
        transition: see `fewstep.train.chunk_noise.reference_transition`.
        share_exit_input: ask at the noisy input of `sample` in the end, so that only the caches differ.

    Raises:
        ValueError: the steps do not contain the exit level.
    """
    raw = sample.grid.raw[sample.exit]
    if raw not in grid.raw or grid.shift != sample.grid.shift:
        raise ValueError(f"the reference's steps {grid.raw} lack {raw}, at which the sample was left, or its shift")
    exit = grid.raw.index(raw)
    how = {"grad": False, "keep_caches": share_exit_input}
    made = roll(sample.causal, sample.plan, grid, sample.cond, sample.start, exit, transition, **how)
    if not share_exit_input:
        return made
    velocity = made.again(sample.noisy, sample.sigma)
    x = flow.x0_from_velocity(sample.noisy, velocity, sample.sigma)
    return replace(made, x=x, noisy=sample.noisy, velocity=velocity)
