"""Reference rollouts of a causal student (Salt, 2604.03118): the same video in more steps, with a cache of its own."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..flow import StepGrid
from .chunk_noise import Transition
from .chunk_rollout import CausalStudent, ChunkExit, ChunkPlan, ChunkRollout, roll


@torch.no_grad()
def reference_roll(
    student: CausalStudent,
    plan: ChunkPlan,
    grid: StepGrid,
    sample: ChunkRollout,
    transition: Transition,
    *,
    share_exit_input: bool = False,
) -> ChunkRollout:
    """Make the video of `sample` again from its noise and condition, over more steps, down to its exit level.

    Nothing of `sample` changes. Each chunk, left at the exit level of `sample`, fills the cache of the reference.

    Args:
        student: the one that made `sample`.
        plan: that of `sample`.
        grid: steps; they contain the exit level of `sample`.
        sample: rollout of the student.
        transition: see `fewstep.train.chunk_noise.reference_transition`.
        share_exit_input: ask at the noisy input of `sample` in the end, so that only the caches differ.

    Raises:
        ValueError: the steps do not contain the exit level.
    """
    raw = sample.grid.raw[sample.exit]
    if raw not in grid.raw or grid.shift != sample.grid.shift:
        raise ValueError(f"the reference's steps {grid.raw} lack {raw}, at which the sample was left, or its shift")
    made = roll(student, plan, grid, sample.cond, sample.start, grid.raw.index(raw), transition, grad=False)
    if not share_exit_input:
        return made
    pairs = zip(sample.chunks, made.chunks, strict=True)
    return replace(made, chunks=tuple(_at_input(student, of, reference, sample) for of, reference in pairs))


def _at_input(student: CausalStudent, of: ChunkExit, reference: ChunkExit, sample: ChunkRollout) -> ChunkExit:
    velocity = student.velocity(of.noisy, of.sigma, sample.cond, reference.cache)
    return replace(reference, noisy=of.noisy, velocity=velocity)
